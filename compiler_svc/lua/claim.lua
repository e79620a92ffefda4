-- SPDX-License-Identifier: Apache-2.0
-- Take the next job that the worker can build. Returns {job, number of the fence, attempt}, or
-- {false, last id of the wake stream, ms until a lease ends or a job may be taken again (-1: none)}.
local id, record, capabilities, ttl_ms, lease_ms, token = unpack(ARGV, 4)
local EVERY_FOURTH = 4  -- takes the job that has waited longest, so that no priority starves another
register_worker(id, record, capabilities, tonumber(ttl_ms))
local worker = cjson.decode(capabilities)

-- The first job of one priority in one queue that this worker can build now.
local function first_in(queue, priority)
  local lowest, beyond = score_of(priority, 0), '(' .. score_of(priority + 1, 0)
  local from = 0
  while true do
    local page = redis.call('ZRANGEBYSCORE', queue_key(queue), lowest, beyond, 'LIMIT', from, 100)
    if #page == 0 then return nil end
    for _, ak in ipairs(page) do
      local job = redis.call('HMGET', job_key(ak), 'tools', 'not_before', 'place')
      local due = tonumber(job[2] or 0) <= NOW
      if due and can_build(worker, queue, read_json(job[1])) then return ak, tonumber(job[3]) end
    end
    from = from + 100
  end
end

local fair = (tonumber(redis.call('GET', P .. 'taken') or 0) + 1) % EVERY_FOURTH == 0
local ak, place
for priority = FIRST_PRIORITY, LAST_PRIORITY do
  for _, queue in ipairs(worker.queues) do
    local candidate, its_place = first_in(queue, priority)
    if candidate and (not place or its_place < place) then ak, place = candidate, its_place end
  end
  if ak and not fair then break end
end

if not ak then
  local last = redis.call('XREVRANGE', WAKE, '+', '-', 'COUNT', 1)
  local lease = redis.call('ZRANGE', LEASES, 0, 0, 'WITHSCORES')
  local delayed = redis.call('ZRANGE', DELAYED, 0, 0, 'WITHSCORES')
  local due = math.min(tonumber(lease[2] or math.huge), tonumber(delayed[2] or math.huge))
  return {false, #last > 0 and last[1][1] or '0-0', due < math.huge and due - NOW or -1}
end

-- A fence never repeats: its number is above the clock and all before it, and the token is this claim's own, should
-- both the last numbers and the clock have gone back.
local number = next_above('fence', NOW)
redis.call('INCR', P .. 'taken')
local attempt = redis.call('HINCRBY', job_key(ak), 'attempts', 1)
redis.call('HSET', job_key(ak), 'worker', id, 'fence', number .. '.' .. token)
redis.call('ZREM', queue_key(field(ak, 'queue')), ak)
redis.call('ZREM', DELAYED, ak)
redis.call('ZADD', LEASES, text(NOW + tonumber(lease_ms)), ak)
begin_attempt(ak, id)
enter(ak, BUILDING, 'worker ' .. id .. ' has it, attempt ' .. attempt .. ' of ' .. MAX_ATTEMPTS)
return {field(ak, 'job'), number, attempt}
