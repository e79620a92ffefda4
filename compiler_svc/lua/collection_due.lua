-- SPDX-License-Identifier: Apache-2.0
-- Is it time to collect? ARGV: ms between the end of a collection and the next. Returns 1 if so, else 0.
local held = redis.call('HMGET', COLLECTOR, 'until', 'ended')
if tonumber(held[1] or 0) > NOW then return 0 end
return NOW - tonumber(held[2] or 0) >= tonumber(ARGV[1]) and 1 or 0
