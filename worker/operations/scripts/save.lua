-- Write fields of a step that is being carried out; refused when another delivery has taken over.
-- KEYS: op, events, result      ARGV: token, fields (JSON), event (JSON or ''), meta
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return 0 end
write(KEYS[1], cjson.decode(ARGV[2]))
redis.call('HSET', KEYS[1], 'updated_at', now_ms())
if ARGV[3] ~= '' then log(KEYS[2], cjson.decode(ARGV[3])) end
if ARGV[4] ~= '' then publish_result(KEYS[3], ARGV[4]) end
return 1
