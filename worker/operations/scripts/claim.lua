-- Let one delivery of a step act. Answers {outcome} or {'claimed', flat record}.
-- KEYS: op, live, waiting, watch, watch_version, events      ARGV: id, direction, position, token, ttl_ms, running state, event, attempts field
local now = now_ms()
local op = redis.call('HMGET', KEYS[1], 'state', 'direction', 'position', 'cancel')
local state = op[1]
if not state then return {'missing'} end
if FINAL[state] or state == 'stuck' or op[2] ~= ARGV[2] or op[3] ~= ARGV[3] then return {'stale'} end
if holder_is_live(KEYS[1], now) then return {'busy'} end
if op[2] == 'run' and op[4] then return {'cancel'} end
if op[2] == 'run' then redis.call('HSET', KEYS[1], 'state', ARGV[6]) end
redis.call('HINCRBY', KEYS[1], 'silent_tries', 1)
redis.call('HINCRBY', KEYS[1], ARGV[8], 1)
redis.call('HSETNX', KEYS[1], 'started_at', now)
redis.call('HSETNX', KEYS[1], 'step_started_at', now)
redis.call('HSET', KEYS[1], 'token', ARGV[4], 'lease_until', now + tonumber(ARGV[5]), 'updated_at', now, 'claimed_at', now)
redis.call('HDEL', KEYS[1], 'wait')
redis.call('ZREM', KEYS[3], ARGV[1])
if redis.call('HDEL', KEYS[4], ARGV[1]) == 1 then redis.call('INCR', KEYS[5]) end
redis.call('ZADD', KEYS[2], now + 2 * tonumber(ARGV[5]), ARGV[1])
log(KEYS[6], cjson.decode(ARGV[7]))
return {'claimed', redis.call('HGETALL', KEYS[1])}
