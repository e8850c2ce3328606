-- Publish many messages in one command.
--
-- KEYS: none
-- ARGV: pairs of a channel and a message

for i = 1, #ARGV, 2 do redis.call('PUBLISH', ARGV[i], ARGV[i + 1]) end
