-- SPDX-License-Identifier: Apache-2.0
-- Record a node's state by the server's clock; forget nodes that were silent for a week.
local id, node, silent_ms = unpack(ARGV)
local nodes, seen = P .. 'nodes', P .. 'nodes:seen'
redis.call('HSET', nodes, id, node)
redis.call('ZADD', seen, text(NOW), id)
for _, silent in ipairs(redis.call('ZRANGEBYSCORE', seen, '-inf', text(NOW - tonumber(silent_ms)))) do
  redis.call('ZREM', seen, silent)
  redis.call('HDEL', nodes, silent)
end
return 1
