-- Put what Postgres says of a scope into its sums. What was spent in earlier days and months leaves them.
--
-- Jobs that were settled since Postgres was asked may be missing in what it said. While jobs end, there are always some.
-- So such an answer may raise what was spent, and not lower it; the next load counts what is missing. Of a first load
-- they are open by what Postgres said, and are settled once more.
--
-- KEYS[1]: the prefix of names (library.lua)
-- ARGV[1]: a JSON list of the scope's id, the version of its sums before Postgres was asked (-1 if they were not
--   loaded), day, spent in it, month, spent in it, jobs that have ended (id and tokens of each), and open jobs (id,
--   kind and cost of each), which count only if the scope was not loaded before

local id, version, day, spent_day, month, spent_month, ended, jobs = unpack(cjson.decode(ARGV[1]))
local open, sums = key(id, 'open'), key(id, 'sums')
local current = version_of(unpack(redis.call('HMGET', sums, 'loaded', 'version')))
local is_new = current == -1
-- Another load came first, or the scope was forgotten meanwhile.
if is_new ~= (version == -1) then return end
for _, job in ipairs(ended) do settle(id, job[1], job[2], day, month, 0) end
if is_new then
    for _, job in ipairs(jobs) do
        if redis.call('HSETNX', open, job[1], string.format('%d:0:%.0f:0', job[2], job[3])) == 1 then
            redis.call('HINCRBY', sums, 'open' .. job[2], 1)
            redis.call('HINCRBY', sums, 'held', job[3])
        end
    end
end
for period, said in pairs({[day] = spent_day, [month] = spent_month}) do
    local kept = tonumber(redis.call('HGET', sums, period))
    if current == version or not kept or kept < said then redis.call('HSET', sums, period, said) end
end
redis.call('HSET', sums, 'loaded', 1)
redis.call('HINCRBY', sums, 'version', 1)
for _, name in ipairs(redis.call('HKEYS', sums)) do
    local kind = name:sub(1, 2)
    -- Not later ones: by the clock of another process, midnight may have passed.
    if (kind == 'd:' and name < day) or (kind == 'm:' and name < month) then redis.call('HDEL', sums, name) end
end
-- A job that is refused leaves its scope loaded, and this may have open jobs that are still to be settled.
redis.call('SADD', KEYS[1] .. 'scopes', id)
if is_new or redis.call('EXISTS', open) == 1 then prolong(id) end
