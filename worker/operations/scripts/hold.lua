-- Queue for a resource and answer who has it: this operation, when it is among the first `most`, else the first one.
-- Dead ones in front (ended, or unknown to the journal) are swept away. The operation's record keeps `most` for move.lua.
-- KEYS: hold list, op      ARGV: id, key prefix of operations, '1' to stay in the queue, resource, token, most
if redis.call('HGET', KEYS[2], 'token') ~= ARGV[5] then return '' end
local queued = redis.call('LPOS', KEYS[1], ARGV[1])
if not queued then redis.call('RPUSH', KEYS[1], ARGV[1]) end
redis.call('HSET', KEYS[2], 'hold:' .. ARGV[4], ARGV[6])
local place = 0
while place < tonumber(ARGV[6]) do
  local one = redis.call('LINDEX', KEYS[1], place)
  if one == ARGV[1] then return one end
  local state = redis.call('HGET', ARGV[2] .. one, 'state')
  if state and not FINAL[state] then
    place = place + 1
  else
    redis.call('LREM', KEYS[1], 1, one)
  end
end
if ARGV[3] ~= '1' then
  redis.call('LREM', KEYS[1], 0, ARGV[1])
  redis.call('HDEL', KEYS[2], 'hold:' .. ARGV[4])
end
return redis.call('LINDEX', KEYS[1], 0)
