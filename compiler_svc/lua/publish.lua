-- SPDX-License-Identifier: Apache-2.0
-- Make an artifact visible to every model version that asked for it. Returns 1, or 0 if the lease is lost or an earlier
-- publish has come back, which Redis had lost when this build was ordered: the first publisher wins, and the job is done.
local ak, worker, fence, manifest, digest, build, message, envelope, size_bytes = unpack(ARGV, 4)
if ended_by(ak, worker, fence, READY) then return 1 end
if not holds(ak, worker, fence) then return 0 end
local current = redis.call('HGET', DIGESTS, ak)
local replaces = field(ak, 'replaces')
if current and current ~= digest and replaces ~= '*' and current ~= replaces then
  forget_claim(ak)
  finish(ak, READY, 'published before Redis lost it')
  return 0
end
redis.call('SET', manifest_key(ak), manifest)
if envelope and envelope ~= '' then
  redis.call('SET', envelope_key(ak), envelope)
else
  redis.call('DEL', envelope_key(ak)) -- what an earlier build of this key was signed with says nothing about this one
end
redis.call('HSET', DIGESTS, ak, digest)
redis.call('HSET', job_key(ak), 'build', build)
redis.call('HDEL', job_key(ak), 'failures')
local told = {}
for _, link in ipairs(redis.call('SMEMBERS', links_key(ak))) do
  local version, model = split_link(link)
  redis.call('HSET', artifacts_key(model), version .. '/' .. ak, digest)
  if not told[model] then changed(model) end
  told[model] = true
end
charge_artifact(ak, size_bytes)
finish(ak, READY, message)
return 1
