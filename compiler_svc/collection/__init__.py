# SPDX-License-Identifier: Apache-2.0
"""Looking after what is stored: collecting what nobody needs, checking it, its figures, and what tenants may take."""
