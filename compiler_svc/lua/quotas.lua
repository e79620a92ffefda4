-- SPDX-License-Identifier: Apache-2.0
-- What tenants use: {tenant, used, reserved, own limit ('': none), ...}.
local found = {}
local function entry(tenant)
  if not found[tenant] then found[tenant] = {0, 0, ''} end
  return found[tenant]
end

local function each(key, change)
  local all = redis.call('HGETALL', key)
  for i = 1, #all, 2 do change(all[i], all[i + 1]) end
end

each(QUOTA_USED, function(tenant, bytes) entry(tenant)[1] = tonumber(bytes) end)
each(QUOTA_LIMITS, function(tenant, bytes) entry(tenant)[3] = bytes end)
each(QUOTA_HELD, function(id, share)
  local ends = redis.call('ZSCORE', QUOTA_UNTIL, id)
  local bytes, tenant = read_share(share)
  if tenant and ends and tonumber(ends) > NOW then entry(tenant)[2] = entry(tenant)[2] + bytes end
end)

local flat = {}
for tenant, figures in pairs(found) do
  flat[#flat + 1] = tenant
  flat[#flat + 1] = text(figures[1])
  flat[#flat + 1] = text(figures[2])
  flat[#flat + 1] = figures[3]
end
return flat
