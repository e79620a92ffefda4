-- SPDX-License-Identifier: Apache-2.0
-- A worker that stops gives its job back; the attempt does not count. Returns 1, or 0 if the lease is lost.
local ak, worker, fence = unpack(ARGV, 4)
if not holds(ak, worker, fence) then return 0 end
redis.call('HINCRBY', job_key(ak), 'attempts', -1)
end_attempt(ak, 'worker ' .. worker .. ' stopped and gave it back')
enqueue(ak, 'worker ' .. worker .. ' stopped; waits for another')
return 1
