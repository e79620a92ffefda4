-- SPDX-License-Identifier: Apache-2.0
-- State of builds. ARGV[1..3] are the queue's policy; a script's own arguments start at ARGV[4].
--   phase: number of BuildPhase    priority: number of BuildPriority    job, build: protobuf bytes
--   queue: "<engine>/<arch>"    tools: JSON {tool: version}    fence: "<number>.<token of the claim>"
--   replaces: digest of the manifest that was there when it was ordered, or '', or '*' for whichever there is
--   history: JSON [{w: worker, b: began, e: ended or "", y: why}], the last attempts
local MAX_ATTEMPTS, WORKER_LOST, RETRY_AFTER_MS = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local QUEUED, UNROUTED, BUILDING, PUBLISHING, READY, FAILED, CANCELLED = 1, 2, 3, 6, 7, 8, 9
local DETERMINISTIC, INFRASTRUCTURE = 1, 3
local FIRST_PRIORITY, LAST_PRIORITY = 1, 3
local DELAYED, DEAD = P .. 'delayed', P .. 'dead'  -- ZSETs: job by when it may be taken; dead job by when it died
local KEPT_ATTEMPTS = 20

local function field(ak, name) return redis.call('HGET', job_key(ak), name) end
local function phase_of(ak) return tonumber(field(ak, 'phase') or 0) end
local function is_waiting(phase) return phase == QUEUED or phase == UNROUTED end
local function is_running(phase) return phase >= BUILDING and phase <= PUBLISHING end
local function has_ended(phase) return phase >= READY end

-- A counter that is never below the clock, so that what was lost with Redis' last second is not given again.
local function next_above(name, clock)
  local value = text(math.max(tonumber(redis.call('GET', P .. name) or 0) + 1, clock))
  redis.call('SET', P .. name, value)
  return value
end

-- Move a build to a state and tell its watchers, in one step.
local function enter(ak, phase, message, logged)
  redis.call('HSET', job_key(ak), 'phase', phase, 'message', message, 'updated', text(NOW))
  local shown = {'phase', 'message', 'updated', 'attempts', 'priority', 'build', 'failure'}
  local values = redis.call('HMGET', job_key(ak), unpack(shown))
  local entry = {'key', ak, 'logged', logged or ''}
  for i, name in ipairs(shown) do
    entry[#entry + 1] = name
    entry[#entry + 1] = values[i] or ''
  end
  redis.call('XADD', EVENTS, 'MAXLEN', '~', 10000, '*', unpack(entry))
end

local decoded = {}  -- each JSON text is read once in a script run: most jobs need the same tools
local function read_json(document)
  if not decoded[document] then decoded[document] = cjson.decode(document) end
  return decoded[document]
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

local live  -- capabilities of the live workers by id, read once in a script run
local able = {}  -- "<queue> <tools>" -> ids of the workers that can build it
local function able_workers(queue, tools)
  local name = queue .. ' ' .. tools
  if able[name] then return able[name] end
  if not live then
    live = {}
    local known = redis.call('HGETALL', CAPABILITIES)
    for i = 1, #known, 2 do live[known[i]] = read_json(known[i + 1]) end
  end
  able[name] = {}
  for id, worker in pairs(live) do
    if can_build(worker, queue, read_json(tools)) then able[name][#able[name] + 1] = id end
  end
  table.sort(able[name])
  return able[name]
end

local function is_routable(ak)
  local job = redis.call('HMGET', job_key(ak), 'queue', 'tools')
  return #able_workers(job[1], job[2]) > 0
end

local function begin_attempt(ak, worker)
  local history = cjson.decode(field(ak, 'history') or '[]')
  history[#history + 1] = {w = worker, b = text(NOW), e = '', y = ''}
  if #history > KEPT_ATTEMPTS then table.remove(history, 1) end
  redis.call('HSET', job_key(ak), 'history', cjson.encode(history))
end

local function end_attempt(ak, why)
  local history = cjson.decode(field(ak, 'history') or '[]')
  local last = history[#history]
  if not last or last.e ~= '' then return end
  last.e, last.y = text(NOW), string.sub(why, 1, 300)
  redis.call('HSET', job_key(ak), 'history', cjson.encode(history))
end

local function priority_of(ak) return tonumber(field(ak, 'priority') or LAST_PRIORITY) end

-- Jobs of one priority follow each other by their place; places stay below the distance for some centuries.
local function score_of(priority, place) return text(priority * 2 ^ 51 + tonumber(place)) end

local function enter_waiting(ak, message)
  if is_routable(ak) then
    enter(ak, QUEUED, message)
  else
    enter(ak, UNROUTED, 'no live worker can build it: start one with ' .. field(ak, 'needs'))
  end
end

local function forget_claim(ak)
  redis.call('HDEL', job_key(ak), 'worker', 'fence', 'log')
  redis.call('ZREM', LEASES, ak)
  redis.call('ZREM', DELAYED, ak)
end

-- A job keeps its place in line when it is taken again; with a delay it is not taken before.
local function enqueue(ak, message, delay_ms)
  local queue = field(ak, 'queue')
  local place = field(ak, 'place')
  if not place then
    place = next_above('place', NOW * 100)
    redis.call('HSET', job_key(ak), 'place', place)
  end
  forget_claim(ak)
  redis.call('HSET', job_key(ak), 'build', '', 'failure', '', 'not_before', text(NOW + (delay_ms or 0)))
  if delay_ms then redis.call('ZADD', DELAYED, text(NOW + delay_ms), ak) end
  redis.call('SADD', QUEUES, queue)
  redis.call('ZADD', queue_key(queue), score_of(priority_of(ak), place), ak)
  enter_waiting(ak, message)
  redis.call('XADD', WAKE, 'MAXLEN', '~', 100, '*', 'q', queue)
end

-- Order what is not known or has ended, with all attempts before it.
local function order(ak, priority, forced)
  redis.call('HSET', job_key(ak), 'attempts', 0, 'created', text(NOW), 'phase', QUEUED, 'priority', text(priority))
  redis.call('HSET', job_key(ak), 'replaces', forced and '*' or redis.call('HGET', DIGESTS, ak) or '')
  redis.call('HDEL', job_key(ak), 'place', 'kind')
  redis.call('ZADD', JOBS, text(NOW), ak)
  redis.call('ZREM', DEAD, ak)
  enqueue(ak, 'waits for a worker')
end

local function raise_priority(ak, priority)
  if priority_of(ak) <= priority then return end
  redis.call('HSET', job_key(ak), 'priority', text(priority))
  if is_waiting(phase_of(ak)) then
    redis.call('ZADD', queue_key(field(ak, 'queue')), 'XX', score_of(priority, field(ak, 'place')), ak)
  end
end

local function finish(ak, phase, message)
  local queue = field(ak, 'queue')
  end_attempt(ak, message)
  redis.call('ZREM', LEASES, ak)
  redis.call('ZREM', DELAYED, ak)
  redis.call('ZREM', DEAD, ak)
  redis.call('ZREM', queue_key(queue), ak)
  redis.call('HDEL', job_key(ak), 'place', 'log')
  enter(ak, phase, message)
end

-- What is known not to work: for good if it is deterministic, else for a while that doubles with each failure.
local function finish_failed(ak, kind, failure, message)
  local failures = redis.call('HINCRBY', job_key(ak), 'failures', 1)
  local wait_ms = RETRY_AFTER_MS * 2 ^ math.min(failures - 1, 6)
  redis.call('HSET', job_key(ak), 'failure', failure, 'kind', kind, 'not_before', text(NOW + wait_ms))
  finish(ak, FAILED, message)
  if tonumber(kind) == INFRASTRUCTURE then redis.call('ZADD', DEAD, text(NOW), ak) end
end

local function reroute_all()
  for _, queue in ipairs(redis.call('SMEMBERS', QUEUES)) do
    for _, ak in ipairs(redis.call('ZRANGE', queue_key(queue), 0, -1)) do
      if (phase_of(ak) == QUEUED) ~= is_routable(ak) then enter_waiting(ak, 'a worker that can build it is there') end
    end
  end
end

local function forget_worker(id)
  redis.call('ZREM', WORKERS_UNTIL, id)
  redis.call('HDEL', WORKERS, id)
  redis.call('HDEL', CAPABILITIES, id)
end

-- Take a job back from a worker that is silent. One that lost two workers may be what kills them: it waits before the
-- third, so that a fleet is not lost in a row.
local function take_back(ak)
  local held = redis.call('HMGET', job_key(ak), 'worker', 'attempts')
  local attempts = tonumber(held[2] or MAX_ATTEMPTS)
  local what = 'worker ' .. (held[1] or '?') .. ' stopped answering in attempt ' .. attempts .. ' of ' .. MAX_ATTEMPTS
  if attempts >= MAX_ATTEMPTS then
    finish_failed(ak, INFRASTRUCTURE, WORKER_LOST, what)
    return
  end
  end_attempt(ak, what)
  enqueue(ak, what .. '; waits for another', attempts > 1 and RETRY_AFTER_MS * 2 ^ (attempts - 2) or nil)
end

-- Do what is due by the clock: forget workers that are gone, take back jobs whose lease ended. Every script begins so,
-- hence no process is needed for it.
local function sweep()
  local gone = redis.call('ZRANGEBYSCORE', WORKERS_UNTIL, '-inf', text(NOW))
  for _, id in ipairs(gone) do forget_worker(id) end
  redis.call('ZREMRANGEBYSCORE', DELAYED, '-inf', text(NOW))
  for _, ak in ipairs(redis.call('ZRANGEBYSCORE', LEASES, '-inf', text(NOW))) do take_back(ak) end
  if #gone > 0 then reroute_all() end
end

local function register_worker(id, record, capabilities, ttl_ms)
  local known = redis.call('HGET', CAPABILITIES, id)
  redis.call('HSET', WORKERS, id, record)
  redis.call('HSET', CAPABILITIES, id, capabilities)
  redis.call('ZADD', WORKERS_UNTIL, text(NOW + ttl_ms), id)
  if known ~= capabilities then
    live, able = nil, {}
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
