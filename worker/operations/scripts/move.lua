-- Move an operation: one atomic compare-and-set with its line of history, its result and its place in the indexes.
-- Answers the time of the move, 0 when it was not allowed.
-- KEYS: op, live, events, result, unannounced, hold lists ...
-- ARGV: id, spec (JSON), key prefix. spec: token, at (direction and position), from, is_parked, set, del, ended (a step's name
--       or ''), place (live | waiting | none), due_in_ms, hold (which of the hold lists, or 0), counts, watch (JSON or ''),
--       pool, event, meta, final, announce, retention_ms
local id, spec, prefix = ARGV[1], cjson.decode(ARGV[2]), ARGV[3]
local op, live, waiting = KEYS[1], KEYS[2], prefix .. ':waiting:' .. spec.pool
local FIRST_HOLD = 6
local HOLD_NAME = #(prefix .. ':hold:' .. spec.pool .. ':') + 1
local now = now_ms()

-- How many operations may have what a hold list is of.
local function most(list) return tonumber(redis.call('HGET', op, 'hold:' .. string.sub(list, HOLD_NAME)) or '1') end

local before = redis.call('HMGET', op, 'state', 'token', 'lease_until', 'step_started_at', 'direction', 'position')
if spec.token ~= '' then
  if before[2] ~= spec.token then return 0 end
elseif before[2] and tonumber(before[3] or '0') > now then
  return 0
end
if before[5] ~= spec.at[1] or before[6] ~= spec.at[2] then return 0 end
if spec.is_parked and not redis.call('ZSCORE', waiting, id) then return 0 end
local is_allowed = false
for _, from in ipairs(spec.from) do is_allowed = is_allowed or from == before[1] end
if not is_allowed then return 0 end

write(op, spec.set)
redis.call('HSET', op, 'updated_at', now)
if spec.ended ~= '' then redis.call('HSET', op, 'times:' .. spec.ended, '[' .. (before[4] or now) .. ',' .. now .. ']') end
redis.call('HDEL', op, 'token', 'lease_until', unpack(spec.del))
unpark(prefix, spec.pool, id)

if spec.place == 'live' then
  redis.call('ZADD', live, now + spec.due_in_ms, id)
else
  redis.call('ZREM', live, id)
end
if spec.place == 'waiting' then
  local due = now + spec.due_in_ms
  local asked = redis.call('HMGET', op, 'direction', 'cancel')
  if asked[1] == 'run' and asked[2] then due = now end -- to stop, while the step was at it
  if spec.hold > 0 then
    local list = KEYS[FIRST_HOLD - 1 + spec.hold]
    local place = redis.call('LPOS', list, id)
    if place and place < most(list) then due = now end
  end
  redis.call('ZADD', waiting, due, id)
  if spec.counts then redis.call('HSETNX', op, 'waiting_since', now) end
  if spec.watch ~= '' then
    local seq = redis.call('INCR', prefix .. ':watchver:' .. spec.pool)
    local looked_at = redis.call('HGET', op, 'claimed_at')
    redis.call('HSET', prefix .. ':watch:' .. spec.pool, id, '[' .. seq .. ',' .. looked_at .. ',' .. spec.watch .. ']')
  end
end
log(KEYS[3], spec.event)
publish_result(KEYS[4], spec.meta)
if spec.announce then redis.call('SADD', KEYS[5], id) end

if spec.final then
  redis.call('HSET', op, 'ended_at', now)
  for _, key in ipairs({op, KEYS[3], KEYS[4]}) do redis.call('PEXPIRE', key, spec.retention_ms) end
  for i = FIRST_HOLD, #KEYS do
    local place = redis.call('LPOS', KEYS[i], id)
    redis.call('LREM', KEYS[i], 0, id)
    local heir = place and place < most(KEYS[i]) and redis.call('LINDEX', KEYS[i], most(KEYS[i]) - 1)
    local theirs = heir and prefix .. ':waiting:' .. (redis.call('HGET', prefix .. ':op:' .. heir, 'pool') or spec.pool)
    if heir and redis.call('ZSCORE', theirs, heir) then redis.call('ZADD', theirs, now, heir) end
  end
end
return now
