# SPDX-License-Identifier: Apache-2.0
"""Content by digest and documents by key: the interfaces in `base`, a tier or a wrapper in each other file."""
