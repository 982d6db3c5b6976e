-- Let one delivery of a step act. Answers {outcome} or {'claimed', flat record}.
-- KEYS: op, live, events      ARGV: id, direction, position, token, ttl_ms, step, key prefix
local now = now_ms()
local op = redis.call('HMGET', KEYS[1], 'state', 'direction', 'position', 'cancel', 'pool', 'token', 'lease_until',
  'step')
local state, pool, token = op[1], op[5], ARGV[4]
if not state then return {'missing'} end
if FINAL[state] or state == 'stuck' or op[2] ~= ARGV[2] or op[3] ~= ARGV[3] then return {'stale'} end
if op[8] ~= ARGV[6] then return {"another release's"} end -- it has the step elsewhere
if op[6] == token then return {'claimed', redis.call('HGETALL', KEYS[1])} end -- the answer was lost, and we are asked again
if op[6] and tonumber(op[7] or '0') > now then return {'busy'} end
if op[2] == 'run' then
  if op[4] then return {'cancel'} end
  state = 'running'
end
redis.call('HSET', KEYS[1], 'state', state, 'token', token, 'lease_until', now + tonumber(ARGV[5]), 'updated_at', now,
  'claimed_at', now)
redis.call('HSETNX', KEYS[1], 'started_at', now)
redis.call('HSETNX', KEYS[1], 'step_started_at', now)
redis.call('HINCRBY', KEYS[1], 'silent_tries', 1)
redis.call('HINCRBY', KEYS[1], 'attempts:' .. ARGV[6], 1)
redis.call('HDEL', KEYS[1], 'wait')
unpark(ARGV[7], pool, ARGV[1])
redis.call('ZADD', KEYS[2], now + 2 * tonumber(ARGV[5]), ARGV[1])
log(KEYS[3], {state = state, step = ARGV[6], text = 'begins'})
return {'claimed', redis.call('HGETALL', KEYS[1])}
