# SPDX-License-Identifier: Apache-2.0
"""Running artifacts on kinds of CPU that this worker does not have, so that the gate speaks for them."""
