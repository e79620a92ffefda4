-- SPDX-License-Identifier: Apache-2.0
-- The queue at one moment: {ms now, jobs that run: {key, lease end, ...}, jobs that wait in order: {key, number of its
-- group, ...}, groups: {{id of an able worker, ...}, ...}, dead jobs, the newest first}.
local running = redis.call('ZRANGE', LEASES, 0, -1, 'WITHSCORES')

local line = {}
for _, queue in ipairs(redis.call('SMEMBERS', QUEUES)) do
  local members = redis.call('ZRANGE', queue_key(queue), 0, -1, 'WITHSCORES')
  for i = 1, #members, 2 do line[#line + 1] = {members[i], tonumber(members[i + 1]), queue} end
end
table.sort(line, function(a, b) return a[2] < b[2] or (a[2] == b[2] and a[1] < b[1]) end)

local waiting, groups, numbers = {}, {}, {}
for _, entry in ipairs(line) do
  local tools = field(entry[1], 'tools')
  local group = entry[3] .. ' ' .. tools
  if not numbers[group] then
    groups[#groups + 1] = {unpack(able_workers(entry[3], tools), 1, 100)}
    numbers[group] = #groups
  end
  waiting[#waiting + 1] = entry[1]
  waiting[#waiting + 1] = numbers[group] - 1
end
return {text(NOW), running, waiting, groups, redis.call('ZREVRANGE', DEAD, 0, -1)}
