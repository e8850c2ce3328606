-- Add what a process has counted lately to the counts of all processes.
--
-- KEYS[1]: the prefix of the slots. A slot is a hash of counts; its key ends in Unix seconds of Redis's clock, divided by
--   the slot's length.
-- ARGV[1]: the length of a slot in seconds
-- ARGV[2]: seconds for which a slot is kept
-- ARGV[3…]: pairs of a name and the number to add

local slot = KEYS[1] .. math.floor(redis.call('TIME')[1] / ARGV[1])
for i = 3, #ARGV, 2 do
    redis.call('HINCRBYFLOAT', slot, ARGV[i], ARGV[i + 1])
end
redis.call('EXPIRE', slot, ARGV[2])
