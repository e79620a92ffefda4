# SPDX-License-Identifier: Apache-2.0
"""The build worker: takes build jobs and runs each in a killable child process."""
