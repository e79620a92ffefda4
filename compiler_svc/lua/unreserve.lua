-- SPDX-License-Identifier: Apache-2.0
-- End a reservation, or extend it. ARGV: reservation, ms that it lasts (0: end it). Returns 1, or 0 if there is none.
local id, ttl_ms = unpack(ARGV)
if redis.call('HEXISTS', QUOTA_HELD, id) == 0 then return 0 end
if ttl_ms == '0' then
  redis.call('HDEL', QUOTA_HELD, id)
  redis.call('ZREM', QUOTA_UNTIL, id)
else
  redis.call('ZADD', QUOTA_UNTIL, text(NOW + tonumber(ttl_ms)), id)
end
return 1
