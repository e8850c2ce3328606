-- What the scripts of limits share. `gate.py` puts it in front of each of them.
--
-- KEYS[1]: what the names of all keys of limits begin with, such as `hr:quota:`. Behind it stands `scopes`, the set
--   of scopes in Redis, and for each scope, a key's or an account's id:
--   `<id>:requests`, `<id>:tokens`: a window each, a hash. It has what was taken in each second, by the second's
--     number, and for jobs that wait also in seconds still to come; a field is never zero. Beside these stand `sum`,
--     their sum, `from`, the second from which on they are in it, and `last`, the last second that has something.
--   `<id>:open`: a hash of open jobs, each with its kind, reserved tokens, reserved cost and second:
--     `1:100:4200:17640`.
--   `<id>:sums`: a hash of the numbers of open jobs by kind (`open0` …), the cost that they reserve (`held`), what
--     was spent in each day and month, `version`, which grows with each change, and `loaded`, once Postgres's sums
--     are in it.
--   An admission lets `open` and `sums` live for forty more days, and so does a correction while a job is open. What
--     is left of this life tells how long a scope has been idle.
-- ARGV: JSON documents, as each script says. Costs are in billionths of a dollar.

local SPAN = 61
-- Seconds: the life of `open` and `sums`, which processes of the previous release set too, and the time after which an
-- idle scope is forgotten.
local LIFE, IDLE = 3456000, 3600
local now = tonumber(redis.call('TIME')[1])
local function key(id, part) return KEYS[1] .. id .. ':' .. part end
local function prolong(id)
    redis.call('EXPIRE', key(id, 'open'), LIFE)
    redis.call('EXPIRE', key(id, 'sums'), LIFE)
end
-- Return the version of a scope's sums for a load: -1 if Postgres's are not in them yet.
local function version_of(loaded, version) return loaded and tonumber(version) or -1 end
-- Return what was spent in a day or month by a scope's loaded sums, of which `kept` is that field. A day that follows
-- one of theirs begins here with nothing: to load it would fail for as long as jobs end meanwhile. Nothing is returned
-- for a day before theirs, which has to be loaded.
local function spent(sums, period, kept)
    if kept then return tonumber(kept) end
    local follows = false
    for _, name in ipairs(redis.call('HKEYS', sums)) do
        if name:sub(1, 2) == period:sub(1, 2) then
            if name > period then return nil end
            follows = true
        end
    end
    if not follows then return nil end
    redis.call('HSET', sums, period, 0)
    return 0
end
local function counts(window, first, last)
    local seconds = {}
    for at = first, last do seconds[#seconds + 1] = at end
    return redis.call('HMGET', window, unpack(seconds))
end
-- The last second up to this one that has something, or any second that has left the window.
local function last_of(window, last)
    while last > now - SPAN do
        local found = counts(window, last - SPAN + 1, last)
        for i = SPAN, 1, -1 do
            if found[i] then return last - SPAN + i end
        end
        last = last - SPAN
    end
    return last
end
-- Correct what was taken in a second. A second that has left the window stays out of it.
local function correct(window, at, count)
    if count == 0 or redis.call('HEXISTS', window, at) == 0 then return end
    redis.call('HINCRBY', window, 'sum', count)
    if redis.call('HINCRBY', window, at, count) ~= 0 then return end
    redis.call('HDEL', window, at)
    if redis.call('HGET', window, 'last') == at then
        redis.call('HSET', window, 'last', last_of(window, tonumber(at)))
    end
end
-- Release what a job reserves, and count what it used instead. A job that is not open any more was settled before.
local function settle(id, job, tokens, day, month, nano)
    local held, sums = redis.call('HGET', key(id, 'open'), job), key(id, 'sums')
    if not held then return end
    redis.call('HDEL', key(id, 'open'), job)
    local kind, reserved, cost, at = held:match('^(%d):(%d+):(%d+):(%d+)')
    local is = redis.call('HMGET', sums, 'open' .. kind, 'held', 'version', 'loaded', day, month)
    local to = {'open' .. kind, (is[1] or 0) - 1, 'held', (is[2] or 0) - cost, 'version', (is[3] or 0) + 1}
    for i, period in ipairs({day, month}) do
        local before = is[4] and spent(sums, period, is[4 + i])
        if before then
            to[#to + 1] = period
            to[#to + 1] = before + nano
        end
    end
    redis.call('HSET', sums, unpack(to))
    correct(key(id, 'tokens'), at, tokens - reserved)
    if tonumber(at) > now then correct(key(id, 'requests'), at, -1) end
end
