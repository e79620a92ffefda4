-- SPDX-License-Identifier: Apache-2.0
-- State of builds. ARGV[1..3] are the queue's policy; a script's own arguments start at ARGV[4].
--   phase: number of BuildPhase    job, build: protobuf bytes    queue: "<engine>/<arch>"    tools: JSON {tool: version}
local MAX_ATTEMPTS, WORKER_LOST, RETRY_AFTER_MS = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local QUEUED, UNROUTED, BUILDING, PUBLISHING, READY, FAILED, CANCELLED = 1, 2, 3, 6, 7, 8, 9
local DETERMINISTIC, INFRASTRUCTURE = 1, 3

local function field(ak, name) return redis.call('HGET', job_key(ak), name) end
local function phase_of(ak) return tonumber(field(ak, 'phase') or 0) end
local function is_waiting(phase) return phase == QUEUED or phase == UNROUTED end
local function is_running(phase) return phase >= BUILDING and phase <= PUBLISHING end
local function has_ended(phase) return phase >= READY end

-- Move a build to a state and tell its watchers, in one step.
local function enter(ak, phase, message)
  redis.call('HSET', job_key(ak), 'phase', phase, 'message', message, 'updated', text(NOW))
  local shown = {'phase', 'message', 'updated', 'attempts', 'build', 'failure'}
  local values = redis.call('HMGET', job_key(ak), unpack(shown))
  local entry = {'key', ak}
  for i, name in ipairs(shown) do
    entry[#entry + 1] = name
    entry[#entry + 1] = values[i] or ''
  end
  redis.call('XADD', EVENTS, 'MAXLEN', '~', 10000, '*', unpack(entry))
end

local function can_build(worker, queue, tools)
  for _, served in ipairs(worker.queues) do
    if served == queue then
      for tool, version in pairs(tools) do
        if worker.toolchain[tool] ~= version then return false end
      end
      return true
    end
  end
  return false
end

local live  -- decoded capabilities of the live workers, read once for each script run
local function is_routable(ak)
  if not live then
    live = {}
    for _, document in ipairs(redis.call('HVALS', CAPABILITIES)) do live[#live + 1] = cjson.decode(document) end
  end
  local job = redis.call('HMGET', job_key(ak), 'queue', 'tools')
  local tools = cjson.decode(job[2])
  for _, worker in ipairs(live) do
    if can_build(worker, job[1], tools) then return true end
  end
  return false
end

local function enter_waiting(ak, message)
  if is_routable(ak) then
    enter(ak, QUEUED, message)
  else
    enter(ak, UNROUTED, 'no live worker can build it: start one with ' .. field(ak, 'needs'))
  end
end

-- A job keeps its place in line when it is taken again.
local function enqueue(ak, message)
  local queue = field(ak, 'queue')
  local place = field(ak, 'place')
  if not place then
    place = text(redis.call('INCR', P .. 'place'))
    redis.call('HSET', job_key(ak), 'place', place)
  end
  redis.call('HSET', job_key(ak), 'build', '', 'failure', '')
  redis.call('HDEL', job_key(ak), 'worker', 'fence')
  redis.call('ZREM', LEASES, ak)
  redis.call('SADD', QUEUES, queue)
  redis.call('ZADD', queue_key(queue), place, ak)
  enter_waiting(ak, message)
  redis.call('XADD', WAKE, 'MAXLEN', '~', 100, '*', 'q', queue)
end

local function finish(ak, phase, message)
  local queue = field(ak, 'queue')
  redis.call('ZREM', LEASES, ak)
  redis.call('ZREM', queue_key(queue), ak)
  redis.call('HDEL', job_key(ak), 'place')
  enter(ak, phase, message)
end

-- What is known not to work: for good if it is deterministic, else for a while that doubles with each failure.
local function finish_failed(ak, kind, failure, message)
  local failures = redis.call('HINCRBY', job_key(ak), 'failures', 1)
  local wait_ms = RETRY_AFTER_MS * 2 ^ math.min(failures - 1, 6)
  redis.call('HSET', job_key(ak), 'failure', failure, 'kind', kind, 'not_before', text(NOW + wait_ms))
  finish(ak, FAILED, message)
end

local function reroute_all()
  for _, queue in ipairs(redis.call('SMEMBERS', QUEUES)) do
    for _, ak in ipairs(redis.call('ZRANGE', queue_key(queue), 0, -1)) do
      if (phase_of(ak) == QUEUED) ~= is_routable(ak) then enter_waiting(ak, 'a worker that can build it is there') end
    end
  end
end

-- Do what is due by the clock: forget workers that are gone, take back jobs whose lease ended. Every script begins so,
-- hence no process is needed for it.
local function sweep()
  local gone = redis.call('ZRANGEBYSCORE', WORKERS_UNTIL, '-inf', text(NOW))
  for _, id in ipairs(gone) do
    redis.call('ZREM', WORKERS_UNTIL, id)
    redis.call('HDEL', WORKERS, id)
    redis.call('HDEL', CAPABILITIES, id)
  end
  for _, ak in ipairs(redis.call('ZRANGEBYSCORE', LEASES, '-inf', text(NOW))) do
    local held = redis.call('HMGET', job_key(ak), 'worker', 'attempts')
    local what = 'worker ' .. (held[1] or '?') .. ' stopped answering in attempt ' .. held[2] .. ' of ' .. MAX_ATTEMPTS
    if tonumber(held[2]) >= MAX_ATTEMPTS then
      finish_failed(ak, INFRASTRUCTURE, WORKER_LOST, what)
    else
      enqueue(ak, what .. '; waits for another')
    end
  end
  if #gone > 0 then reroute_all() end
end

local function register_worker(id, record, capabilities, ttl_ms)
  local known = redis.call('HGET', CAPABILITIES, id)
  redis.call('HSET', WORKERS, id, record)
  redis.call('HSET', CAPABILITIES, id, capabilities)
  redis.call('ZADD', WORKERS_UNTIL, text(NOW + ttl_ms), id)
  if known ~= capabilities then
    live = nil
    reroute_all()
  end
end

local function holds(ak, worker, fence)
  local job = redis.call('HMGET', job_key(ak), 'phase', 'worker', 'fence')
  return job[1] and is_running(tonumber(job[1])) and job[2] == worker and job[3] == fence
end

-- True if this very claim has already ended the build so: the caller repeats a call whose answer was lost.
local function ended_by(ak, worker, fence, phase)
  local job = redis.call('HMGET', job_key(ak), 'phase', 'worker', 'fence')
  return job[1] and tonumber(job[1]) == phase and job[2] == worker and job[3] == fence
end

sweep()
