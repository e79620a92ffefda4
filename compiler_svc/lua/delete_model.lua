-- SPDX-License-Identifier: Apache-2.0
-- Remove versions of a model with the artifacts that no other version uses. ARGV: policy, model, versions.
-- Returns {versions removed, aliases removed, artifact keys removed}.
local KEPT_MS = 7 * 24 * 3600 * 1000
local model = ARGV[4]
local doomed, removed, aliases, artifacts = {}, {}, {}, {}
for i = 5, #ARGV do
  doomed[ARGV[i]] = true
  redis.call('ZADD', DELETED, text(NOW), ARGV[i] .. '/' .. model)
  redis.call('HDEL', contents_key(model), ARGV[i])
  uncharge(model_item(model, ARGV[i]))
  if redis.call('HDEL', versions_key(model), ARGV[i]) == 1 then removed[#removed + 1] = ARGV[i] end
end

redis.call('ZREMRANGEBYSCORE', DELETED, '-inf', text(NOW - KEPT_MS))

local pairs_of = redis.call('HGETALL', aliases_key(model))
for i = 1, #pairs_of, 2 do
  if doomed[pairs_of[i + 1]] then
    redis.call('HDEL', aliases_key(model), pairs_of[i])
    aliases[#aliases + 1] = pairs_of[i]
  end
end

for _, member in ipairs(redis.call('HKEYS', artifacts_key(model))) do
  local version, ak = string.match(member, '^(%d+)/(.+)$')
  if doomed[version] then
    redis.call('HDEL', artifacts_key(model), member)
    redis.call('SREM', links_key(ak), version .. '/' .. model)
    if redis.call('SCARD', links_key(ak)) == 0 then
      local phase = phase_of(ak)
      if phase > 0 and not has_ended(phase) then finish(ak, CANCELLED, 'the model was deleted') end
      redis.call('DEL', job_key(ak), manifest_key(ak), envelope_key(ak), benchmarks_key(ak))
      redis.call('HDEL', DIGESTS, ak)
      redis.call('ZREM', JOBS, ak)
      redis.call('ZREM', DEAD, ak)
      uncharge(artifact_item(ak))
      artifacts[#artifacts + 1] = ak
    else
      local share = redis.call('HGET', QUOTA_ITEMS, artifact_item(ak))
      if share then charge_artifact(ak, text(read_share(share))) end
    end
  end
end
changed(model)
return {removed, aliases, artifacts}
