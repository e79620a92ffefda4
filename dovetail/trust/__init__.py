# SPDX-License-Identifier: Apache-2.0
"""Who made an artifact, and whether this machine takes it from them: keys, signed envelopes, policy."""
