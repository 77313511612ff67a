-- Deletes a row, and says whether there was one.
-- KEYS: the row, the index of keys, the index of ends
-- ARGV: member of the indexes, channel
local login = redis.pcall('HGET', KEYS[1], 'login')
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
local deleted = redis.call('DEL', KEYS[1])
if deleted == 1 then
  local known = type(login) == 'string' and #login == 16
  redis.call('PUBLISH', ARGV[2], known and 'E' .. login .. ARGV[1] or '?')
end
return deleted
