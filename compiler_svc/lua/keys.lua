-- SPDX-License-Identifier: Apache-2.0
-- Twin of compiler_svc/keys.py: the same names from the same prefix, and what both index and jobs change.
-- Every script is these functions plus one file. All keys share the slot of KEYS[1].
local P = KEYS[1]
local META, MODELS, DIGESTS = P .. 'meta', P .. 'models', P .. 'digests'
local CHANGES, EVENTS, WAKE = P .. 'changes', P .. 'events', P .. 'wake'
local JOBS, LEASES, QUEUES = P .. 'jobs', P .. 'leases', P .. 'queues'
local WORKERS, WORKERS_UNTIL, CAPABILITIES = P .. 'workers', P .. 'workers:until', P .. 'workers:can'
local DELETED = P .. 'deleted'
local PINS, PINS_SINCE, COLLECTOR = P .. 'pins', P .. 'pins:since', P .. 'collector'
local QUOTA_ITEMS, QUOTA_USED, QUOTA_LIMITS = P .. 'quota:items', P .. 'quota:used', P .. 'quota:limits'
local QUOTA_HELD, QUOTA_UNTIL = P .. 'quota:held', P .. 'quota:until'

local function versions_key(model) return P .. 'm:' .. model .. ':versions' end
local function contents_key(model) return P .. 'm:' .. model .. ':contents' end
local function aliases_key(model) return P .. 'm:' .. model .. ':aliases' end
local function artifacts_key(model) return P .. 'm:' .. model .. ':artifacts' end
local function manifest_key(ak) return P .. 'mf:' .. ak end
local function envelope_key(ak) return P .. 'env:' .. ak end
local function benchmarks_key(ak) return P .. 'b:' .. ak end
local function links_key(ak) return P .. 'links:' .. ak end
local function job_key(ak) return P .. 'job:' .. ak end
local function queue_key(queue) return P .. 'q:' .. queue end

-- The server's clock decides every deadline; workers' and services' own clocks never do.
local function server_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
local NOW = server_ms()

local function text(number) return string.format('%.0f', number) end

-- Tell readers that a model's manifests or figures changed. A counter that is new starts at the clock, so that one
-- that was lost with Redis' data never takes a value that some reader has cached.
local function changed(model)
  for _, name in ipairs({'gen:' .. model, 'gen:'}) do
    if redis.call('HSETNX', META, name, text(NOW)) == 0 then redis.call('HINCRBY', META, name, 1) end
  end
  redis.call('XADD', CHANGES, 'MAXLEN', '~', 1000, '*', 'm', model)
end

-- A link is "<version>/<model>"; every model version that asked for an artifact has one.
local function split_link(link)
  local version, model = string.match(link, '^(%d+)/(.+)$')
  return version, model
end

local function newest_version(model)
  local newest = 0
  for _, version in ipairs(redis.call('HKEYS', versions_key(model))) do newest = math.max(newest, tonumber(version)) end
  return newest
end

-- A version's number is never given again, so what was deleted once is deleted for good, whoever still holds its record.
local function is_deleted(model, version)
  return redis.call('ZSCORE', DELETED, version .. '/' .. model) ~= false
end

local function model_item(model, version) return 'm/' .. model .. '/' .. version end
local function artifact_item(ak) return 'a/' .. ak end

-- Bytes and tenant of an item or a reservation: "<bytes> <tenant>".
local function read_share(share)
  local bytes, tenant = string.match(share or '', '^(%d+) (.+)$')
  return tonumber(bytes or 0), tenant
end

-- Stop counting an item for its tenant.
local function uncharge(item)
  local bytes, tenant = read_share(redis.call('HGET', QUOTA_ITEMS, item))
  if not tenant then return end
  redis.call('HDEL', QUOTA_ITEMS, item)
  if redis.call('HINCRBY', QUOTA_USED, tenant, text(0 - bytes)) <= 0 then redis.call('HDEL', QUOTA_USED, tenant) end
end

-- Count an item for a tenant; instead of what it was before, if it was there.
local function charge(item, tenant, bytes)
  uncharge(item)
  redis.call('HSET', QUOTA_ITEMS, item, bytes .. ' ' .. tenant)
  redis.call('HINCRBY', QUOTA_USED, tenant, bytes)
end

-- Count an artifact for the tenant of the first model version that has it.
local function charge_artifact(ak, bytes)
  local links = redis.call('SMEMBERS', links_key(ak))
  table.sort(links)
  for _, link in ipairs(links) do
    local version, model = split_link(link)
    local _, tenant = read_share(redis.call('HGET', QUOTA_ITEMS, model_item(model, version)))
    if tenant then return charge(artifact_item(ak), tenant, bytes) end
  end
end
