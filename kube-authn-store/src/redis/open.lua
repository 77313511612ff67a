-- Notes the version of the layout if there is none yet, tells nothing to nobody, and says which version there is.
-- KEYS: the version
-- ARGV: channel, the version of who asks
redis.call('SETNX', KEYS[1], ARGV[2])
redis.call('PUBLISH', ARGV[1], '')
return redis.call('GET', KEYS[1])
