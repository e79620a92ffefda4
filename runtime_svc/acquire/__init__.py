# SPDX-License-Identifier: Apache-2.0
"""Getting an artifact onto this machine and into service: negotiate, fetch, verify, load, replay goldens, swap."""
