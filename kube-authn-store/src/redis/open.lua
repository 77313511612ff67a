-- Notes the version of the layout if there is none yet, tells nothing to nobody, and says which version there is.
-- KEYS: the version
-- ARGV: channel, the version of who asks
local noted = redis.pcall('SETNX', KEYS[1], ARGV[2])
local version = redis.call('GET', KEYS[1])
if type(noted) == 'table' and noted.err then
  -- Whoever may not write at the moment, being full or short of disk or replicas, may still be read.
  local code = string.match(noted.err, '^%u+')
  local passes = code == 'OOM' or code == 'MISCONF' or code == 'NOREPLICAS'
  if not (version and passes) then return noted end
end
redis.call('PUBLISH', ARGV[1], '')
return version
