-- Writes a row if what stands there is as expected.
-- KEYS: the row, the index of keys, the index of ends
-- ARGV: member of the indexes, channel, expected login ('' if no row may be there), expected number,
--       from when on a purge takes it, then the fields: login, its value, number, its value, and so on
if ARGV[3] == '' then
  if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
else
  local present = redis.call('HMGET', KEYS[1], 'login', 'number')
  if present[1] ~= ARGV[3] or present[2] ~= ARGV[4] then return 0 end
end
-- A script is not rolled back: what a foreign value could make fail comes first, and an index entry without a row
-- harms nobody.
redis.call('ZADD', KEYS[2], 0, ARGV[1])
redis.call('ZADD', KEYS[3], ARGV[5], ARGV[1])
redis.call('HSET', KEYS[1], unpack(ARGV, 6))
local login, number = ARGV[7], ARGV[9]
if ARGV[3] ~= '' and ARGV[3] ~= login then
  redis.call('PUBLISH', ARGV[2], 'E' .. ARGV[3] .. ARGV[1])
end
redis.call('PUBLISH', ARGV[2], 'C' .. login .. number .. ':' .. ARGV[1])
return 1
