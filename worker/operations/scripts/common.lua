-- Shared by every script: it is put in front of each (see journal.py). Times are milliseconds of the server's clock.

local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local FINAL = {succeeded = true, failed = true, undone = true, cancelled = true}

-- One line of the operation's history; people and programs follow it with XREAD.
local function log(stream, event)
  local flat = {}
  for key, value in pairs(event) do
    flat[#flat + 1] = key
    flat[#flat + 1] = tostring(value)
  end
  redis.call('XADD', stream, 'MAXLEN', '~', 1000, '*', unpack(flat))
end

-- What AsyncResult(operation id) reads: the same key and channel as Celery's own Redis backend.
local function publish_result(key, meta)
  redis.call('SET', key, meta)
  redis.call('PUBLISH', key, meta)
end

local function holder_is_live(op, now)
  local held = redis.call('HMGET', op, 'token', 'lease_until')
  return held[1] and tonumber(held[2] or '0') > now
end

local function write(op, fields)
  local flat = {}
  for key, value in pairs(fields) do
    flat[#flat + 1] = key
    flat[#flat + 1] = value
  end
  if #flat > 0 then redis.call('HSET', op, unpack(flat)) end
end

-- Take an operation out of what its pool's watcher looks through. Every change of `watch` counts `watchver` up.
local function unpark(prefix, pool, id)
  redis.call('ZREM', prefix .. ':waiting:' .. pool, id)
  if redis.call('HDEL', prefix .. ':watch:' .. pool, id) == 1 then redis.call('INCR', prefix .. ':watchver:' .. pool) end
end
