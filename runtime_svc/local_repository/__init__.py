# SPDX-License-Identifier: Apache-2.0
"""Models of a folder on the node: Python models, pipelines, and ONNX files where nothing needs to be signed."""
