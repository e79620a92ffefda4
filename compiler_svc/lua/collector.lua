-- SPDX-License-Identifier: Apache-2.0
-- Be the one collector, or go on being it. ARGV: owner, ms that it lasts (0: give it back).
-- Returns {1, or 0 if another has it, owner that has it, now, ms since the index was filled (-1: it is empty),
-- earliest time since which a pin holds (the durable tier's clock; -1: none)}.
local owner, ttl_ms = unpack(ARGV)
local held = redis.call('HMGET', COLLECTOR, 'owner', 'until')
local other = held[1] and held[1] ~= owner and tonumber(held[2]) > NOW
if ttl_ms == '0' then
  if held[1] == owner then redis.call('HSET', COLLECTOR, 'until', '0', 'ended', text(NOW)) end
elseif not other then
  redis.call('HSET', COLLECTOR, 'owner', owner, 'until', text(NOW + tonumber(ttl_ms)))
end

local age_ms = -1
if redis.call('HEXISTS', META, 'epoch') == 1 then
  redis.call('HSETNX', META, 'epoch_at', text(NOW)) -- an index from before this was noted counts as new
  age_ms = NOW - tonumber(redis.call('HGET', META, 'epoch_at'))
end

for _, gone in ipairs(redis.call('ZRANGEBYSCORE', PINS, '-inf', text(NOW))) do
  redis.call('ZREM', PINS, gone)
  redis.call('HDEL', PINS_SINCE, gone)
end
local since = -1
for _, value in ipairs(redis.call('HVALS', PINS_SINCE)) do
  if since < 0 or tonumber(value) < since then since = tonumber(value) end
end
return {other and 0 or 1, held[1] or '', text(NOW), text(age_ms), text(since)}
