-- SPDX-License-Identifier: Apache-2.0
-- Keep a node's figures. Returns 1, or 0 if there is no such artifact.
local ak, figure, record = unpack(ARGV)
if redis.call('HEXISTS', DIGESTS, ak) == 0 then return 0 end
redis.call('HSET', benchmarks_key(ak), figure, record)
for _, link in ipairs(redis.call('SMEMBERS', links_key(ak))) do
  local _, model = split_link(link)
  changed(model)
end
return 1
