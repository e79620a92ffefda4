-- SPDX-License-Identifier: Apache-2.0
-- Number for new content of a model. Returns {1, number}; {0, newest} if that has this content; {-1, 0} without an index.
local model, content = ARGV[1], ARGV[2]
if redis.call('HEXISTS', META, 'epoch') == 0 then return {-1, 0} end
local newest = newest_version(model)
if newest > 0 and redis.call('HGET', contents_key(model), text(newest)) == content then return {0, newest} end
return {1, redis.call('HINCRBY', MODELS, model, 1)}
