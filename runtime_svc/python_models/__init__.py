# SPDX-License-Identifier: Apache-2.0
"""Models that are a Python file with `class Model: load / infer / unload`, each run in processes of its own.

The node's side: `open_model`, `session`, `child_process`, `child_output`, `limits`. The process's: `child`,
`child_setup`, `user_model`, `user_objects`. Both: `frames`, `layout`, `shared_pages`.
"""
