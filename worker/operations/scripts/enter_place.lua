-- Let a delivery into a place that holds so many at a time. Those whose execution lease is over are put out first.
-- Answers 'in', 'full' or 'lost' (the delivery has itself been taken over).
-- KEYS: place, op      ARGV: id, token, at most, key prefix of operations, ttl_ms
local now = now_ms()
if redis.call('HGET', KEYS[2], 'token') ~= ARGV[2] then return 'lost' end
local inside = redis.call('HGETALL', KEYS[1])
for i = 1, #inside, 2 do
  local held = redis.call('HMGET', ARGV[4] .. inside[i + 1], 'token', 'lease_until')
  if held[1] ~= inside[i] or tonumber(held[2] or '0') <= now then redis.call('HDEL', KEYS[1], inside[i]) end
end
if redis.call('HEXISTS', KEYS[1], ARGV[2]) == 0 and redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[3]) then
  return 'full'
end
redis.call('HSET', KEYS[1], ARGV[2], ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[5])
return 'in'
