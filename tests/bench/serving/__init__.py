# SPDX-License-Identifier: Apache-2.0
"""Our runtime service beside other inference servers: same model, same machine, one run."""
