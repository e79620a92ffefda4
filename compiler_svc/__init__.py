# SPDX-License-Identifier: Apache-2.0
"""The compiler service: registry, build orders, negotiation and distribution; its workers are in `worker`."""
