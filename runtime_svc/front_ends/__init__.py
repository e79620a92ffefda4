# SPDX-License-Identifier: Apache-2.0
"""Front ends: processes that speak gRPC on the same port and pass bytes to the one process that has the models.

`frames`, `pipe` and `flow` are what passes between them; `front_end`, `calls`, `handlers` and `settings` are the front
end's side; `link`, `process`, `supervisor`, `port` and `server` the main process's; `options` is what a node is told.
"""
