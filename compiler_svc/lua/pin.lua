-- SPDX-License-Identifier: Apache-2.0
-- Begin or extend a pin: what its owner touched since a time is not collected until the pin ends.
-- ARGV: owner, since (the durable tier's clock), ms that it lasts; 0 ends it.
local owner, since, ttl_ms = unpack(ARGV)
if ttl_ms == '0' then
  redis.call('HDEL', PINS_SINCE, owner)
  return redis.call('ZREM', PINS, owner)
end
redis.call('HSETNX', PINS_SINCE, owner, since)
redis.call('ZADD', PINS, text(NOW + tonumber(ttl_ms)), owner)
return 1
