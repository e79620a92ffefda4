-- SPDX-License-Identifier: Apache-2.0
-- Reserve bytes for a tenant before they are stored, or change a reservation. What its item has already counts.
-- ARGV: reservation, tenant, bytes, item ('': none), ms that it lasts, limit of who has none of its own (0: no limit).
-- Returns {1, or 0 if it is over the limit, used, reserved by others, limit}; {-1} without an index.
local id, tenant, bytes, item, ttl_ms, default_limit = unpack(ARGV)
if redis.call('HEXISTS', META, 'epoch') == 0 then return {-1} end
for _, gone in ipairs(redis.call('ZRANGEBYSCORE', QUOTA_UNTIL, '-inf', text(NOW))) do
  redis.call('ZREM', QUOTA_UNTIL, gone)
  redis.call('HDEL', QUOTA_HELD, gone)
end

local reserved = 0
local all = redis.call('HGETALL', QUOTA_HELD)
for i = 1, #all, 2 do
  local held, whose = read_share(all[i + 1])
  if whose == tenant and all[i] ~= id then reserved = reserved + held end
end

local used = tonumber(redis.call('HGET', QUOTA_USED, tenant) or 0)
local limit = tonumber(redis.call('HGET', QUOTA_LIMITS, tenant) or default_limit)
local known = read_share(item ~= '' and redis.call('HGET', QUOTA_ITEMS, item) or '')
local more = math.max(0, tonumber(bytes) - known)
local told = {text(used), text(reserved), text(limit)}
if limit > 0 and more > 0 and used + reserved + more > limit then return {0, unpack(told)} end
redis.call('HSET', QUOTA_HELD, id, text(more) .. ' ' .. tenant)
redis.call('ZADD', QUOTA_UNTIL, text(NOW + tonumber(ttl_ms)), id)
return {1, unpack(told)}
