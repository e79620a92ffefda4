-- SPDX-License-Identifier: Apache-2.0
-- State of some builds at one moment: {last event id, {state (flat), manifest if there is no job}, ...}.
local last = redis.call('XREVRANGE', EVENTS, '+', '-', 'COUNT', 1)
local found = {#last > 0 and last[1][1] or '0-0'}
for i = 4, #ARGV do
  local state = redis.call('HGETALL', job_key(ARGV[i]))
  found[#found + 1] = {state, #state == 0 and redis.call('GET', manifest_key(ARGV[i]))}
end
return found
