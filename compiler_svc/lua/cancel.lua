-- SPDX-License-Identifier: Apache-2.0
-- End a build that has not ended; its worker loses the lease. With only_waiting '1' one that a worker has begun goes on.
-- Returns 1, or 0 if it has ended or goes on, -1 if there is none.
local ak, message, only_waiting = unpack(ARGV, 4)
local phase = phase_of(ak)
if phase == 0 then return redis.call('HEXISTS', DIGESTS, ak) - 1 end
if has_ended(phase) or (only_waiting == '1' and not is_waiting(phase)) then return 0 end
finish(ak, CANCELLED, message)
return 1
