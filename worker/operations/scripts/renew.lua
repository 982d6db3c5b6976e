-- Keep the execution lease. Answers 'held', 'cancel' (held, but the operation is asked to stop) or 'lost'.
-- KEYS: op, live      ARGV: id, token, ttl_ms
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[2] then return 'lost' end
local now = now_ms()
redis.call('HSET', KEYS[1], 'lease_until', now + tonumber(ARGV[3]))
redis.call('ZADD', KEYS[2], now + 2 * tonumber(ARGV[3]), ARGV[1])
if redis.call('HEXISTS', KEYS[1], 'cancel') == 1 and redis.call('HGET', KEYS[1], 'direction') == 'run' then return 'cancel' end
return 'held'
