-- SPDX-License-Identifier: Apache-2.0
-- Record a new state of a running build, and the end of its log unless that is ''. Returns 1, or 0 if the lease is lost.
local ak, worker, fence, phase, build, message, log = unpack(ARGV, 4)
if not holds(ak, worker, fence) then return 0 end
redis.call('HSET', job_key(ak), 'build', build)
if log ~= '' then redis.call('HSET', job_key(ak), 'log', log) end
enter(ak, tonumber(phase), message, log ~= '' and '1' or '')
return 1
