-- Rows of a range of keys, in order: {member, {values}}; no values where none of our rows is.
-- KEYS: the index of keys
-- ARGV: what stands before a member in the key of its row, from, to, limit (-1: all), then the fields
local rows = {}
local members = redis.call('ZRANGEBYLEX', KEYS[1], ARGV[2], ARGV[3], 'LIMIT', 0, ARGV[4])
for index, member in ipairs(members) do
  local row = redis.pcall('HMGET', ARGV[1] .. member, unpack(ARGV, 5))
  rows[index] = { member, row.err and {} or row }
end
return rows
