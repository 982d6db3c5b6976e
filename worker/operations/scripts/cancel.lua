-- Ask an operation to stop (or, when it is stuck, to try again). Answers 'missing', 'ended', 'late', 'undoing' or 'asked'.
-- KEYS: op, live, waiting, events      ARGV: id, event
local op = redis.call('HMGET', KEYS[1], 'state', 'direction', 'position', 'no_return')
if not op[1] then return 'missing' end
if FINAL[op[1]] then return 'ended' end
local now = now_ms()
if op[1] == 'stuck' then
  redis.call('HSET', KEYS[1], 'resume', 1)
  redis.call('ZADD', KEYS[2], now, ARGV[1])
  return 'asked'
end
if op[2] ~= 'run' then return 'undoing' end
if op[4] and tonumber(op[3]) > tonumber(op[4]) then return 'late' end
redis.call('HSET', KEYS[1], 'cancel', 1)
log(KEYS[4], cjson.decode(ARGV[2]))
-- A worker at it hears of it when it renews its lease; otherwise watcher or reconciler sends the next link, which turns round.
if not holder_is_live(KEYS[1], now) then
  if redis.call('ZSCORE', KEYS[3], ARGV[1]) then redis.call('ZADD', KEYS[3], now, ARGV[1])
  else redis.call('ZADD', KEYS[2], now, ARGV[1]) end
end
return 'asked'
