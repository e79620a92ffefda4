# SPDX-License-Identifier: Apache-2.0
"""The command line `dovetail`: one file per command group, over the SDK, the mesh and the probe only."""
