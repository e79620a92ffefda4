# SPDX-License-Identifier: Apache-2.0
"""A read-through cache of artifacts for one site: an office or plant pulls each chunk over the WAN once."""
