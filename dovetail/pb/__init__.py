# SPDX-License-Identifier: Apache-2.0
"""Messages and stubs made from `protos/`: our own contract in `v1`, the Open Inference Protocol in `oip`."""
