-- SPDX-License-Identifier: Apache-2.0
-- A worker is alive and can build this.
local id, record, capabilities, ttl_ms = unpack(ARGV, 4)
register_worker(id, record, capabilities, tonumber(ttl_ms))
return 1
