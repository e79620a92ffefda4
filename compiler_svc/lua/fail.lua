-- SPDX-License-Identifier: Apache-2.0
-- End a build with a typed failure. Returns 1, or 0 if the lease is lost.
local ak, worker, fence, kind, failure, build, message = unpack(ARGV, 4)
if ended_by(ak, worker, fence, FAILED) then return 1 end
if not holds(ak, worker, fence) then return 0 end
redis.call('HSET', job_key(ak), 'build', build)
finish_failed(ak, kind, failure, message)
return 1
