-- SPDX-License-Identifier: Apache-2.0
-- Point an alias at a version. Returns 1, or 0 if there is no such version.
local model, alias, version = unpack(ARGV)
if redis.call('HEXISTS', versions_key(model), version) == 0 then return 0 end
redis.call('HSET', aliases_key(model), alias, version)
return 1
