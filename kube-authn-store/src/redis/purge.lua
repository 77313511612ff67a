-- Deletes rows that ended, first those that ended first; says how many index entries it took, and how many rows.
-- KEYS: the index of keys, the index of ends
-- ARGV: what stands before a member in the key of its row, channel, instant, limit
local members = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', '(' .. ARGV[3], 'LIMIT', 0, ARGV[4])
local purged = 0
for _, member in ipairs(members) do
  local row = ARGV[1] .. member
  local login = redis.pcall('HGET', row, 'login')
  redis.call('ZREM', KEYS[1], member)
  redis.call('ZREM', KEYS[2], member)
  if redis.call('DEL', row) == 1 then
    purged = purged + 1
    local known = type(login) == 'string' and #login == 16
    redis.call('PUBLISH', ARGV[2], known and 'E' .. login .. member or '?')
  end
end
return { #members, purged }
