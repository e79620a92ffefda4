-- SPDX-License-Identifier: Apache-2.0
-- Order a build or attach to it. Returns {1 if the outcome was known, state of the job (flat), manifest if there is no job}.
local ak, job, queue, tools, needs, model, version, force, priority = unpack(ARGV, 4)
priority = tonumber(priority)

local digest = redis.call('HGET', DIGESTS, ak)
if redis.call('HSETNX', artifacts_key(model), version .. '/' .. ak, digest or '') == 1 then
  redis.call('SADD', links_key(ak), version .. '/' .. model)
  if digest then changed(model) end
end

local function order_anew()
  redis.call('HSET', job_key(ak), 'job', job, 'queue', queue, 'tools', tools, 'needs', needs)
  order(ak, priority, force ~= '0')
end

local phase = phase_of(ak)
local known = 0
if phase == 0 then
  if digest and force == '0' then return {1, {}, redis.call('GET', manifest_key(ak))} end
  order_anew()
elseif has_ended(phase) then
  local job_state = redis.call('HMGET', job_key(ak), 'kind', 'not_before')
  local sticks = phase == FAILED and (tonumber(job_state[1]) == DETERMINISTIC or NOW < tonumber(job_state[2]))
  if force == '0' and (sticks or (phase == READY and digest)) then known = 1 else order_anew() end
else
  raise_priority(ak, priority)
end
return {known, redis.call('HGETALL', job_key(ak)), false}
