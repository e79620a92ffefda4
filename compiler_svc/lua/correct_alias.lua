-- SPDX-License-Identifier: Apache-2.0
-- Point an alias where its document says, unless it has changed since it was looked at. Returns 1 if it was put right.
local model, alias, seen, version = unpack(ARGV)
if redis.call('HGET', aliases_key(model), alias) ~= seen then return 0 end
if redis.call('HEXISTS', versions_key(model), version) == 0 then return 0 end
redis.call('HSET', aliases_key(model), alias, version)
return 1
