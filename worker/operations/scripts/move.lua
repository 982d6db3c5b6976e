-- Move an operation: one atomic compare-and-set with its line of history, its result and its place in the indexes.
-- KEYS: op, live, waiting, watch, watch_version, events, result, unannounced, hold lists ...
-- ARGV: id, spec (JSON): token, from, set, del, place (live | waiting | none), due_in_ms, hold (a KEYS index or 0), watch, event,
--       meta, meta_ttl_ms, final, retention_ms
local spec = cjson.decode(ARGV[2])
local now = now_ms()
local op = KEYS[1]
local state = redis.call('HGET', op, 'state')
if spec.token ~= '' then
  if redis.call('HGET', op, 'token') ~= spec.token then return 0 end
elseif holder_is_live(op, now) then
  return 0
end
local allowed = false
for _, from in ipairs(spec.from) do if from == state then allowed = true end end
if not allowed then return 0 end

for key, value in pairs(spec.set) do redis.call('HSET', op, key, value) end
redis.call('HDEL', op, 'token', 'lease_until', unpack(spec.del))
redis.call('HSET', op, 'updated_at', now)
if redis.call('HDEL', KEYS[4], ARGV[1]) == 1 then redis.call('INCR', KEYS[5]) end

if spec.place == 'live' then
  redis.call('ZREM', KEYS[3], ARGV[1])
  redis.call('ZADD', KEYS[2], now + spec.due_in_ms, ARGV[1])
elseif spec.place == 'waiting' then
  local due = now + spec.due_in_ms
  if spec.hold > 0 and redis.call('LINDEX', KEYS[8 + spec.hold], 0) == ARGV[1] then due = now end
  redis.call('ZREM', KEYS[2], ARGV[1])
  redis.call('ZADD', KEYS[3], due, ARGV[1])
  redis.call('HSETNX', op, 'waiting_since', now)
  if spec.watch ~= '' then
    local watch = cjson.decode(spec.watch)
    watch.seq = redis.call('INCR', KEYS[5])
    watch.looked_at = tonumber(redis.call('HGET', op, 'claimed_at'))
    redis.call('HSET', KEYS[4], ARGV[1], cjson.encode(watch))
  end
else
  redis.call('ZREM', KEYS[2], ARGV[1])
  redis.call('ZREM', KEYS[3], ARGV[1])
end
log(KEYS[6], spec.event)
publish_result(KEYS[7], spec.meta, spec.meta_ttl_ms)

if spec.final then
  redis.call('HSET', op, 'ended_at', now)
  redis.call('SADD', KEYS[8], ARGV[1])
  redis.call('PEXPIRE', op, spec.retention_ms)
  redis.call('PEXPIRE', KEYS[6], spec.retention_ms)
  for i = 9, #KEYS do
    redis.call('LREM', KEYS[i], 0, ARGV[1])
    local heir = redis.call('LINDEX', KEYS[i], 0)
    if heir and redis.call('ZSCORE', KEYS[3], heir) then redis.call('ZADD', KEYS[3], now, heir) end
  end
end
return 1
