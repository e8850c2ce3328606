-- Grant as many of a worker's waiting calls as a provider's limits have room for, in turns with other workers.
--
-- KEYS[1]: the provider's hash. It has a field for each worker, `w<id>`: the number of its last question, its calls
--   under way, what waits there in calls and tokens and since when, when it asked last, and how many calls more will
--   follow those that wait, which earlier releases do not write. And one for each slot of
--   time, `s<number>`: its calls and tokens. Times are in milliseconds of Redis's clock. The hash of a route whose limit
--   adapts has a field `limit`: numbers with spaces between them, of which the first three are its cuts, its version
--   and the calls at once. Of two limits the one with more cuts counts, then the one with the higher version.
-- ARGV[1]: the worker's id
-- ARGV[2]: numbers with spaces between them, in one argument because redis-py takes a microsecond and more over each:
--   the limits of calls at once, calls and tokens a minute (-1: no limit); milliseconds of a minute, of a worker's
--   lease and of its place in the queue; the question's number, calls under way, milliseconds for which the first
--   waiting call has waited, waiting calls and tokens, and calls that will follow those; the number of corrections, and
--   a slot, calls and tokens for each; and for each waiting request, in their order, calls at once, tokens, and calls
--   that will follow as those end, which count in the minute alone. The first call of a worker where no client
--   waits has a negative age: it comes after the calls of all workers where one does.
-- ARGV[3]: the adaptive limit as the worker knows it, as in the field; empty for another limit
-- Returns how many of the waiting requests are granted, the milliseconds after which the next may be, the slot that
--   counts them, the calls that other workers have under way, those that wait there, those of them that come first,
--   and the adaptive limit if it is newer than the worker's, else an empty text.

local function split(text)
    local numbers = {}
    for number in string.gmatch(text, '%S+') do numbers[#numbers + 1] = tonumber(number) end
    return numbers
end
local me, said, limits = 'w' .. ARGV[1], split(ARGV[2]), {}
for i = 1, 3 do limits[i] = said[i] < 0 and math.huge or said[i] end
local window, lease, place, question, held, age = said[4], said[5], said[6], said[7], said[8], said[9]
local waiting, waiting_tokens, waiting_more, corrections = said[10], said[11], said[12], said[13]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local step = window / 30
local slot = math.floor(now / step)
local since = now - age

local newer, known = '', ARGV[3] ~= '' and redis.call('HGET', KEYS[1], 'limit')
if known then
    local mine, theirs = split(ARGV[3]), split(known)
    if theirs[1] > mine[1] or (theirs[1] == mine[1] and theirs[2] > mine[2]) then
        newer, limits[1] = known, theirs[3]
    end
end
if ARGV[3] ~= '' and newer == '' and known ~= ARGV[3] then redis.call('HSET', KEYS[1], 'limit', ARGV[3]) end

local slots, calls, ahead, ahead_tokens, ahead_more, wanted = {}, held, 0, 0, 0, 0
-- Among workers where no client waits, those with fewer calls under way come first: then no free slot waits for the
-- next question of a worker that has its share.
local behind = age < 0
local fields = redis.call('HGETALL', KEYS[1])
for i = 1, #fields, 2 do
    local field, numbers = fields[i], split(fields[i + 1])
    if field == 'limit' then
        -- It is read above.
    elseif string.sub(field, 1, 1) == 's' then
        local number = tonumber(string.sub(field, 2))
        if number < slot - 30 then redis.call('HDEL', KEYS[1], field) else slots[number] = numbers end
    elseif field == me then
        if numbers[1] >= question then return {0, 0, slot, 0, 0, 0, ''} end
    elseif now - numbers[6] > lease then
        redis.call('HDEL', KEYS[1], field)
    else
        calls = calls + numbers[2]
        if numbers[3] > 0 and now - numbers[6] <= place then
            wanted = wanted + numbers[3]
            local earlier = numbers[5] < since or (numbers[5] == since and field < me)
            if earlier and (not behind or numbers[5] <= now or numbers[2] < held) then
                ahead, ahead_tokens = ahead + numbers[3], ahead_tokens + numbers[4]
                ahead_more = ahead_more + (numbers[7] or 0)
            end
        end
    end
end

local function add(number, requests, tokens)
    local counted = slots[number] or {0, 0}
    slots[number] = {math.max(0, counted[1] + requests), math.max(0, counted[2] + tokens)}
    redis.call('HSET', KEYS[1], 's' .. string.format('%.0f', number),
        string.format('%.0f %.0f', slots[number][1], slots[number][2]))
end
local counting = math.min(limits[2], limits[3]) < math.huge
local first = 14 + 3 * corrections
for i = 14, first - 1, 3 do
    local number, requests, tokens = said[i], said[i + 1], said[i + 2]
    -- What was used beyond the estimate counts from now; what was not used never was, if its slot still counts.
    if requests > 0 or tokens > 0 then add(slot, math.max(0, requests), math.max(0, tokens)) end
    if slots[number] then add(number, math.min(0, requests), math.min(0, tokens)) end
end

local requests, tokens = 0, 0
for _, counted in pairs(slots) do requests, tokens = requests + counted[1], tokens + counted[2] end
local free = {limits[1] - calls - ahead, limits[2] - requests - ahead - ahead_more, limits[3] - tokens - ahead_tokens}
local granted, taken, taken_tokens, taken_more, short = 0, 0, 0, 0, nil
for i = first, #said, 3 do
    local n, t, more = said[i], said[i + 1], said[i + 2]
    if free[1] < n or free[2] < n + more or free[3] < t then
        short = {n + more, t}
        break
    end
    free = {free[1] - n, free[2] - n - more, free[3] - t}
    granted, taken, taken_tokens, taken_more = granted + 1, taken + n, taken_tokens + t, taken_more + more
end
if counting and granted > 0 then add(slot, taken + taken_more, taken_tokens) end
redis.call('HSET', KEYS[1], me, string.format('%.0f %.0f %.0f %.0f %.0f %.0f %.0f', question, held + taken,
    waiting - taken, waiting_tokens - taken_tokens, since, now, waiting_more - taken_more))
redis.call('PEXPIRE', KEYS[1], math.ceil(math.max(window + step, lease)))

local wait = 0
if short then
    local lacking = {short[1] - free[2], short[2] - free[3]}
    for number = slot - 30, slot do
        if lacking[1] <= 0 and lacking[2] <= 0 then break end
        wait = (number + 31) * step - now
        local counted = slots[number] or {0, 0}
        lacking = {lacking[1] - counted[1], lacking[2] - counted[2]}
    end
end
return {granted, math.ceil(wait), slot, calls - held, wanted, ahead, newer}
