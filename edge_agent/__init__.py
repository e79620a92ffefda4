# SPDX-License-Identifier: Apache-2.0
"""The edge agent: a node for a device, small and at home offline."""
