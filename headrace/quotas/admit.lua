-- Take what jobs are going to use from their scopes' limits: of each job all or nothing.
--
-- KEYS[1]: the prefix of names (library.lua)
-- ARGV: for each job a JSON list of day, month, id, kind (0: a client waits, 1: background, 2: a batch's line),
--   tokens, cost, and scopes. A scope is a list of id, requests and tokens per minute, jobs in flight and queued,
--   daily and monthly budget (-1: no limit), and whether its jobs wait for a rate instead of being refused.
-- Returns for each job a list of a word (`ok`, `load`, or the limit that refuses it), the number of the scope that the
--   word is about, what is used of that limit (or, with `load`, the version of its sums, as `version_of` says), the
--   seconds until it has room (-1: never; with `ok`: the seconds for which the job waits), and the rates of each
--   window: name, limit, rest, seconds until it is empty.

local function window(scope, id, part, limit, more, waits)
    local key = key(id, part)
    local kept = redis.call('HMGET', key, 'sum', 'from', 'last')
    local sum, from, last = tonumber(kept[1] or 0), tonumber(kept[2] or now - SPAN + 1), tonumber(kept[3] or 0)
    for first = from, now - SPAN, SPAN do
        local found = counts(key, first, math.min(first + SPAN - 1, now - SPAN))
        for i = 1, #found do
            if found[i] then
                sum = sum - found[i]
                redis.call('HDEL', key, first + i - 1)
            end
        end
    end
    if from <= now - SPAN then
        from = now - SPAN + 1
        redis.call('HSET', key, 'sum', sum, 'from', from)
    end
    local used, newest = sum, last
    if last > now then
        local found = counts(key, now - SPAN + 1, now)
        used = 0
        for i = 1, SPAN do
            if found[i] then used, newest = used + found[i], now - SPAN + i end
        end
    end
    return {
        scope = scope, key = key, part = part, limit = limit, more = more, waits = waits,
        sum = sum, from = from, last = last, used = used, newest = newest,
    }
end
-- A request may be taken in a second if no window that has this second is too full then: those that end with it and
-- the sixty after it. Return the first such second from one on, as far as windows tell that end that much later.
local function free_from(win, at, ahead)
    local first = at - SPAN + 1
    local found = counts(win.key, first, math.max(at, math.min(at + ahead, win.last)))
    local sum, free = 0, at
    for i = 1, SPAN + ahead do
        sum = sum + (found[i] or 0) - (i > SPAN and found[i - SPAN] or 0)
        local last = first + i - 1
        if last >= at and sum + win.more > win.limit then
            free = last + 1
        elseif last == free + SPAN - 1 then
            return free
        end
    end
    return free
end
local function fits(win, at)
    if win.sum + win.more <= win.limit then return true end
    return math.max(at, win.last) > now and free_from(win, at, SPAN - 1) == at
end
-- The second in which a job is taken, or else why it is refused. A job that waits does not overtake earlier ones.
local function second(windows)
    for _, win in ipairs(windows) do
        if win.more > win.limit then return nil, {win.part .. '_per_minute', win.scope, win.used, -1} end
    end
    local at = now
    -- A window that has moved the second once has room from there on.
    for _ = 1, #windows + 1 do
        local moved = false
        for _, win in ipairs(windows) do
            if not fits(win, at) then
                if not win.waits then
                    local free = free_from(win, at, 2 * SPAN)
                    return nil, {win.part .. '_per_minute', win.scope, win.used, free - now}
                end
                at, moved = free_from(win, math.max(at, win.last), SPAN), true
            end
        end
        if not moved then return at end
    end
    error('no second')
end
local function take(win, at)
    if win.more == 0 then return end
    if redis.call('HINCRBY', win.key, at, win.more) == win.more then
        redis.call('EXPIRE', win.key, math.max(at, win.last) - now + 120)
    end
    redis.call('HINCRBY', win.key, 'sum', win.more)
    if at > win.last then
        redis.call('HSET', win.key, 'last', at, 'from', win.from)
    elseif at < win.from then  -- the clock was set back
        redis.call('HSET', win.key, 'from', at)
    end
end
-- Of the last minute: each window's name, limit, what is left of it, and after how many seconds all of it is.
local function rates(windows, at)
    local told = {}
    for i, win in ipairs(windows) do
        local used, newest = win.used, win.newest
        if at == now then used, newest = used + win.more, now end
        told[i] = {win.part, win.limit, win.limit - used, used > 0 and newest + SPAN - now or 0}
    end
    return told
end
-- A job that may cost more than is left runs if no other job does: so small budgets are useful, and one job may
-- exceed them.
local function exceeds(budget, spent, held, nano)
    if budget < 0 then return false end
    if nano == 0 then return spent > budget end
    return spent + held + nano > budget and (held > 0 or spent >= budget)
end
local function refusal(scope, kind, nano, open, held, spent_day, spent_month)
    local flight, queued, daily, monthly = unpack(scope, 4, 7)
    if exceeds(daily, spent_day, held, nano) then return 'daily_budget' end
    if exceeds(monthly, spent_month, held, nano) then return 'monthly_budget' end
    if kind == 0 and flight >= 0 and open >= flight then return 'jobs_in_flight' end
    if kind == 1 and queued >= 0 and open >= queued then return 'jobs_queued' end
end
local function hold(id, job, kind, open, held, nano, holds)
    if redis.call('HSETNX', key(id, 'open'), job, holds) == 1 then
        redis.call('HSET', key(id, 'sums'), 'open' .. kind, open + 1, 'held', held + nano)
    end
    if open == 0 then prolong(id) end
    redis.call('SADD', KEYS[1] .. 'scopes', id)
end
local function admit(day, month, job, kind, tokens, nano, scopes)
    local windows, states, at, refused = {}, {}
    for i, scope in ipairs(scopes) do
        local id, rpm, tpm, flight, queued, daily, monthly, waits = unpack(scope)
        local sums = redis.call(
            'HMGET', key(id, 'sums'), 'loaded', 'version', 'open0', 'open1', 'open2', 'held', day, month)
        local stateful = flight >= 0 or queued >= 0 or daily >= 0 or monthly >= 0
        local spent_day, spent_month = 0, 0
        if stateful then
            spent_day = sums[1] and spent(key(id, 'sums'), day, sums[7])
            spent_month = sums[1] and spent(key(id, 'sums'), month, sums[8])
            if not (spent_day and spent_month) then return {'load', i, version_of(sums[1], sums[2])} end
        end
        local open, held = tonumber(sums[3 + kind] or 0), tonumber(sums[6] or 0)
        local word = refusal(scope, kind, nano, open, held, spent_day, spent_month)
        if word and not refused then refused = {word, i, open, 0} end
        states[i] = {id, open, held}
        waits = waits and kind == 1
        if rpm >= 0 then windows[#windows + 1] = window(i, id, 'requests', rpm, 1, waits) end
        if tpm >= 0 then windows[#windows + 1] = window(i, id, 'tokens', tpm, tokens, waits) end
    end
    if not refused then at, refused = second(windows) end
    if refused then
        refused[5] = rates(windows)
        return refused
    end
    local holds = string.format('%d:%.0f:%.0f:%d', kind, tokens, nano, at)
    for _, win in ipairs(windows) do take(win, at) end
    for _, state in ipairs(states) do
        local id, open, held = unpack(state)
        hold(id, job, kind, open, held, nano, holds)
    end
    return {'ok', 0, 0, at - now, rates(windows, at)}
end
local answers = {}
for i = 1, #ARGV do answers[i] = admit(unpack(cjson.decode(ARGV[i]))) end
return answers
