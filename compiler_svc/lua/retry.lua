-- SPDX-License-Identifier: Apache-2.0
-- Order a job that failed or was cancelled again, as it was ordered. Returns 1, or 0 if it has not ended or is ready,
-- -1 if there is none.
local ak, priority = unpack(ARGV, 4)
local phase = phase_of(ak)
if phase == 0 then return -1 end
if phase ~= FAILED and phase ~= CANCELLED then return 0 end
order(ak, tonumber(priority))
return 1
