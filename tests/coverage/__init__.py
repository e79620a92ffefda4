# SPDX-License-Identifier: Apache-2.0
"""ONNX's own backend tests through intake, both back ends, the gate and the engines: `python -m tests.coverage`."""
