-- SPDX-License-Identifier: Apache-2.0
-- Make a version visible under its allotted number. Returns the number that has the content: an equal push may have won;
-- or 0 if the model was deleted meanwhile, and the version's document with it.
local model, version, content, record, tenant, bytes = unpack(ARGV)
if is_deleted(model, version) then return 0 end
local newest = newest_version(model)
if newest > 0 and redis.call('HGET', contents_key(model), text(newest)) == content then return newest end
redis.call('HSET', versions_key(model), version, record)
redis.call('HSET', contents_key(model), version, content)
charge(model_item(model, version), tenant, bytes)
return tonumber(version)
