-- Write a new operation, or take over one that the client announced (position -1).
-- KEYS: op, live, ops, events, result      ARGV: id, fields (JSON), announced ('1' when only the client speaks), grace_ms, event, meta
local now = now_ms()
local state = redis.call('HMGET', KEYS[1], 'state', 'position')
if state[1] and not (state[2] == '-1' and state[1] == 'queued' and ARGV[3] == '0') then return 0 end
write(KEYS[1], cjson.decode(ARGV[2]))
redis.call('HSETNX', KEYS[1], 'created_at', now)
redis.call('HSET', KEYS[1], 'updated_at', now)
redis.call('ZADD', KEYS[2], now + tonumber(ARGV[4]), ARGV[1])
redis.call('ZADD', KEYS[3], 'NX', now, ARGV[1])
log(KEYS[4], cjson.decode(ARGV[5]))
publish_result(KEYS[5], ARGV[6])
return 1
