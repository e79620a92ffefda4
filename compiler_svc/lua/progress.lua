-- SPDX-License-Identifier: Apache-2.0
-- Record a new state of a running build. Returns 1, or 0 if the lease is lost.
local ak, worker, fence, phase, build, message = unpack(ARGV, 4)
if not holds(ak, worker, fence) then return 0 end
redis.call('HSET', job_key(ak), 'build', build)
enter(ak, tonumber(phase), message)
return 1
