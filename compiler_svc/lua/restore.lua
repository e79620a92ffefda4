-- SPDX-License-Identifier: Apache-2.0
-- Put records from the durable tier into an index that lacks them; what is there stays. Many records in one step.
-- ARGV: for each record the number of its words, then the words: kind and values. Returns how many were lacking, or -1
-- if Redis was emptied between "begin" and "done", so that what was restored first is gone again.
local restore = {}
local emptied = false

function restore.begin(token)
  redis.call('HSET', META, 'filling:' .. token, text(NOW))
  return 0
end

function restore.version(model, version, content, record, tenant, bytes)
  if is_deleted(model, version) then return 0 end  -- after its document was read
  local last = tonumber(redis.call('HGET', MODELS, model) or 0)
  redis.call('HSET', MODELS, model, text(math.max(last, tonumber(version))))
  redis.call('HSETNX', contents_key(model), version, content)
  charge(model_item(model, version), tenant, bytes)
  return redis.call('HSETNX', versions_key(model), version, record)
end

function restore.sequence(model, last)
  local known = tonumber(redis.call('HGET', MODELS, model) or 0)
  redis.call('HSET', MODELS, model, text(math.max(known, tonumber(last))))
  return known < tonumber(last) and 1 or 0
end

function restore.alias(model, alias, version)
  return redis.call('HSETNX', aliases_key(model), alias, version)
end

function restore.artifact(model, version, ak, digest, manifest, envelope, bytes)
  if is_deleted(model, version) then return 0 end
  local added = redis.call('HSETNX', DIGESTS, ak, digest)
  local current = redis.call('HGET', DIGESTS, ak)
  if current == digest then
    redis.call('SETNX', manifest_key(ak), manifest)
    if envelope ~= '' then redis.call('SETNX', envelope_key(ak), envelope) end
  end
  added = added + redis.call('SADD', links_key(ak), version .. '/' .. model)
  local member = version .. '/' .. ak
  if redis.call('HGET', artifacts_key(model), member) ~= current then
    redis.call('HSET', artifacts_key(model), member, current)
    changed(model)
    added = added + 1
  end
  if current == digest then charge_artifact(ak, bytes) end
  return math.min(added, 1)
end

function restore.benchmark(ak, figure, record)
  return redis.call('HSETNX', benchmarks_key(ak), figure, record)
end

function restore.quota(tenant, limit)
  return redis.call('HSETNX', QUOTA_LIMITS, tenant, limit)
end

-- All was read: what is counted for tenants and not there any more is counted no longer.
function restore.done(token)
  if redis.call('HDEL', META, 'filling:' .. token) == 0 then
    emptied = true
    return 0
  end
  for _, item in ipairs(redis.call('HKEYS', QUOTA_ITEMS)) do
    local model, version = string.match(item, '^m/(.+)/(%d+)$')
    local ak = string.match(item, '^a/(.+)$')
    local there = model and redis.call('HEXISTS', versions_key(model), version) == 1
      or ak and redis.call('HEXISTS', DIGESTS, ak) == 1
    if not there then uncharge(item) end
  end
  if redis.call('HSETNX', META, 'epoch', token) == 1 then redis.call('HSET', META, 'epoch_at', text(NOW)) end
  return 0
end

local lacking, at = 0, 1
while at <= #ARGV do
  local words = {}
  for i = 1, tonumber(ARGV[at]) do words[i] = ARGV[at + i] end
  lacking = lacking + restore[words[1]](unpack(words, 2))
  at = at + #words + 1
end
return emptied and -1 or lacking
