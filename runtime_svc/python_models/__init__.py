# SPDX-License-Identifier: Apache-2.0
"""Models that are a Python file with `class Model: load / infer / unload`, each run in processes of its own.

The node's side: `open_model`, `session`, `run_header`, `turns_header`, `child_process`, `child_end`, `child_output`,
`limits`. The process's: `child`, `child_setup`, `child_turns`, `run_reading`, `user_model`, `user_objects`,
`open_request`. Both: `frames`, `layout`, `shared_pages`, `control_page`.
"""
