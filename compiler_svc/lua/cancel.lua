-- SPDX-License-Identifier: Apache-2.0
-- End a build that has not ended; its worker loses the lease. Returns 1, or 0 if it has ended, -1 if there is none.
local ak, message = unpack(ARGV, 4)
local phase = phase_of(ak)
if phase == 0 then return redis.call('HEXISTS', DIGESTS, ak) - 1 end
if has_ended(phase) then return 0 end
finish(ak, CANCELLED, message)
return 1
