# SPDX-License-Identifier: Apache-2.0
"""Generated from protos/dovetail/v1; do not edit."""
