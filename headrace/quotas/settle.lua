-- Release what ended jobs reserve, and count what they used in its place. A settled job stays as it is.
--
-- KEYS[1]: the prefix of names (library.lua)
-- ARGV: for each job a JSON list of day, month, id, tokens, cost, and the ids of its scopes
-- Returns a list with 1 for each job.

local answers = {}
for i = 1, #ARGV do
    local day, month, job, tokens, nano, ids = unpack(cjson.decode(ARGV[i]))
    for _, id in ipairs(ids) do settle(id, job, tokens, day, month, nano) end
    answers[i] = 1
end
return answers
