-- SPDX-License-Identifier: Apache-2.0
-- Take the oldest job that the worker can build. Returns {job, fence, attempt}, or
-- {false, last id of the wake stream, ms until the next lease ends (-1: none)}.
local id, record, capabilities, ttl_ms, lease_ms = unpack(ARGV, 4)
register_worker(id, record, capabilities, tonumber(ttl_ms))
local worker = cjson.decode(capabilities)

local function oldest_in(queue)
  local from = 0
  while true do
    local page = redis.call('ZRANGE', queue_key(queue), from, from + 99, 'WITHSCORES')
    if #page == 0 then return nil end
    for i = 1, #page, 2 do
      if can_build(worker, queue, cjson.decode(field(page[i], 'tools'))) then return page[i], tonumber(page[i + 1]) end
    end
    from = from + 100
  end
end

local ak, place
for _, queue in ipairs(worker.queues) do
  local candidate, its_place = oldest_in(queue)
  if candidate and (not place or its_place < place) then ak, place = candidate, its_place end
end

if not ak then
  local last = redis.call('XREVRANGE', WAKE, '+', '-', 'COUNT', 1)
  local lease = redis.call('ZRANGE', LEASES, 0, 0, 'WITHSCORES')
  return {false, #last > 0 and last[1][1] or '0-0', #lease > 0 and tonumber(lease[2]) - NOW or -1}
end

-- The first fence is the clock, so that one that was lost with Redis' data is never given again.
redis.call('SETNX', P .. 'fence', text(NOW))
local fence = text(redis.call('INCR', P .. 'fence'))
local attempt = redis.call('HINCRBY', job_key(ak), 'attempts', 1)
redis.call('HSET', job_key(ak), 'worker', id, 'fence', fence)
redis.call('ZREM', queue_key(field(ak, 'queue')), ak)
redis.call('ZADD', LEASES, text(NOW + tonumber(lease_ms)), ak)
enter(ak, BUILDING, 'worker ' .. id .. ' has it, attempt ' .. attempt .. ' of ' .. MAX_ATTEMPTS)
return {field(ak, 'job'), fence, attempt}
