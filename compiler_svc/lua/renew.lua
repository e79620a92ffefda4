-- SPDX-License-Identifier: Apache-2.0
-- Extend a lease. Returns 1, or 0 if it is lost.
local ak, worker, fence, lease_ms = unpack(ARGV, 4)
if not holds(ak, worker, fence) then return 0 end
redis.call('ZADD', LEASES, text(NOW + tonumber(lease_ms)), ak)
return 1
