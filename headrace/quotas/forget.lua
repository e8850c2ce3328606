-- Forget a scope if no job of it is open, and its sums either lack Postgres's or have been idle for an hour. It leaves
-- the set, and idle sums are deleted: the next admission loads them again.
--
-- KEYS[1]: the prefix of names (library.lua)
-- ARGV[1]: the scope's id
-- Returns the version of its sums if Postgres's are in them, so that they are to be corrected; else nothing.

local id = ARGV[1]
local sums = key(id, 'sums')
local loaded, version = unpack(redis.call('HMGET', sums, 'loaded', 'version'))
if redis.call('EXISTS', key(id, 'open')) == 0 then
    if redis.call('TTL', sums) < LIFE - IDLE then
        redis.call('DEL', sums)
        loaded = false
    end
    if not loaded then redis.call('SREM', KEYS[1] .. 'scopes', id) end
end
return loaded and tonumber(version)
