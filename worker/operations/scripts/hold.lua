-- Queue for a resource and answer whose turn it is. A dead head (ended, or unknown to the journal) is swept away.
-- KEYS: hold list, op      ARGV: id, key prefix of operations, '1' to stay in the queue, resource, token
if redis.call('HGET', KEYS[2], 'token') ~= ARGV[5] then return '' end
local queued = redis.call('LPOS', KEYS[1], ARGV[1])
if not queued then redis.call('RPUSH', KEYS[1], ARGV[1]) end
redis.call('HSET', KEYS[2], 'hold:' .. ARGV[4], 1)
while true do
  local head = redis.call('LINDEX', KEYS[1], 0)
  if head == ARGV[1] then return head end
  local state = redis.call('HGET', ARGV[2] .. head, 'state')
  if state and not FINAL[state] then
    if ARGV[3] ~= '1' then
      redis.call('LREM', KEYS[1], 0, ARGV[1])
      redis.call('HDEL', KEYS[2], 'hold:' .. ARGV[4])
    end
    return head
  end
  redis.call('LPOP', KEYS[1])
end
