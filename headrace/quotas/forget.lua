-- Take a scope off the set if its sums have expired and no job of it is open.
--
-- KEYS[1]: the prefix of names (library.lua)
-- ARGV[1]: the scope's id
-- Returns 1 if it was taken off, else 0.

local id = ARGV[1]
if redis.call('HEXISTS', key(id, 'sums'), 'loaded') == 1 or redis.call('EXISTS', key(id, 'open')) == 1 then return 0 end
return redis.call('SREM', KEYS[1] .. 'scopes', id)
