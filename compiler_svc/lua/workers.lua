-- SPDX-License-Identifier: Apache-2.0
-- Live workers: {record, until_ms, ...}.
local found = {}
for _, id in ipairs(redis.call('ZRANGE', WORKERS_UNTIL, 0, -1)) do
  found[#found + 1] = redis.call('HGET', WORKERS, id)
  found[#found + 1] = redis.call('ZSCORE', WORKERS_UNTIL, id)
end
return found
