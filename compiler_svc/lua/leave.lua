-- SPDX-License-Identifier: Apache-2.0
-- A worker has stopped: forget it now, and route what only it could build elsewhere.
forget_worker(ARGV[4])
reroute_all()
return 1
