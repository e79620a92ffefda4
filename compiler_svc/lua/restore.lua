-- SPDX-License-Identifier: Apache-2.0
-- Put records from the durable tier into an index that lacks them; what is there stays. ARGV: kind, then its values.
local kind = ARGV[1]
if kind == 'version' then
  local _, model, version, content, record = unpack(ARGV)
  local last = tonumber(redis.call('HGET', MODELS, model) or 0)
  redis.call('HSET', MODELS, model, text(math.max(last, tonumber(version))))
  redis.call('HSETNX', versions_key(model), version, record)
  redis.call('HSETNX', contents_key(model), version, content)
elseif kind == 'sequence' then
  local _, model, last = unpack(ARGV)
  redis.call('HSET', MODELS, model, text(math.max(tonumber(redis.call('HGET', MODELS, model) or 0), tonumber(last))))
elseif kind == 'alias' then
  local _, model, alias, version = unpack(ARGV)
  redis.call('HSETNX', aliases_key(model), alias, version)
elseif kind == 'artifact' then
  local _, model, version, ak, digest, manifest = unpack(ARGV)
  if redis.call('HSETNX', DIGESTS, ak, digest) == 1 then redis.call('SET', manifest_key(ak), manifest) end
  redis.call('HSET', artifacts_key(model), version .. '/' .. ak, redis.call('HGET', DIGESTS, ak))
  redis.call('SADD', links_key(ak), version .. '/' .. model)
elseif kind == 'benchmark' then
  local _, ak, figure, record = unpack(ARGV)
  redis.call('HSETNX', benchmarks_key(ak), figure, record)
elseif kind == 'done' then
  redis.call('HSETNX', META, 'epoch', ARGV[2])
end
return 1
