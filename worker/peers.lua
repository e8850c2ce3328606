-- Write what a worker says of its paths to providers, and return what the other workers say.
--
-- KEYS[1]: a hash. The field `worker <name>` has when that worker wrote last and what it said; `pause <route>` has
--   when the route's pause ends. Times are Unix milliseconds of Redis's clock.
-- KEYS[2]: the channel of the workers of its machine that run lines of batches
-- ARGV[1]: the worker's name
-- ARGV[2]: what it says (`View.pack`)
-- ARGV[3]: milliseconds after which a worker that has not written counts as gone
-- ARGV[4]: the message that has those workers read the hash now; empty for none
-- ARGV[5…]: pairs of a route and the milliseconds for which it is paused
-- Returns whether the worker had a field already, what other present workers say, and a flat list of each paused
--   route and the milliseconds that its pause still lasts.

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local own = 'worker ' .. ARGV[1]
local known = redis.call('HEXISTS', KEYS[1], own)
redis.call('HSET', KEYS[1], own, string.format('%.0f ', now) .. ARGV[2])
for i = 5, #ARGV, 2 do
    local field, ends = 'pause ' .. ARGV[i], now + ARGV[i + 1]
    if ends > tonumber(redis.call('HGET', KEYS[1], field) or 0) then
        redis.call('HSET', KEYS[1], field, string.format('%.0f', ends))
    end
end
redis.call('EXPIRE', KEYS[1], 86400)
if ARGV[4] ~= '' then
    redis.call('PUBLISH', KEYS[2], ARGV[4])
end
local workers, pauses = {}, {}
local fields = redis.call('HGETALL', KEYS[1])
for i = 1, #fields, 2 do
    local kind, name = string.match(fields[i], '^(%a+) (.*)$')
    local at, told = string.match(fields[i + 1], '^(%d+) ?(.*)$')
    if kind == 'pause' and (tonumber(at) or 0) > now then
        pauses[#pauses + 1] = name
        pauses[#pauses + 1] = tonumber(at) - now
    elseif kind ~= 'worker' or (tonumber(at) or 0) < now - tonumber(ARGV[3]) then
        redis.call('HDEL', KEYS[1], fields[i])
    elseif name ~= ARGV[1] then
        workers[#workers + 1] = told
    end
end
return {known, workers, pauses}
