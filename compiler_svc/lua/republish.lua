-- SPDX-License-Identifier: Apache-2.0
-- Make an artifact visible again as its document says, which Redis has lost, unless that has changed since it was looked
-- at ('' for none). A job that does not know either is done, also one that had been cancelled or had failed before it was
-- ordered again: what it would build has been published. Returns 1 if it was put right.
local ak, seen, digest, manifest, envelope, bytes = unpack(ARGV, 4)
if (redis.call('HGET', DIGESTS, ak) or '') ~= seen then return 0 end
local links = redis.call('SMEMBERS', links_key(ak))
if #links == 0 then return 0 end
redis.call('HSET', DIGESTS, ak, digest)
redis.call('SET', manifest_key(ak), manifest)
if envelope ~= '' then redis.call('SET', envelope_key(ak), envelope) else redis.call('DEL', envelope_key(ak)) end
for _, link in ipairs(links) do
  local version, model = split_link(link)
  redis.call('HSET', artifacts_key(model), version .. '/' .. ak, digest)
  changed(model)
end
charge_artifact(ak, bytes)
local phase = phase_of(ak)
if phase > 0 and phase ~= READY then
  redis.call('HDEL', job_key(ak), 'failures')
  forget_claim(ak)  -- it was not the holder's doing
  finish(ak, READY, 'published before Redis lost it')
end
return 1
