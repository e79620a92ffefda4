# SPDX-License-Identifier: Apache-2.0
"""Programs that `torch.export` captured: what their files may hold, their ONNX form, and how far one is from the other.

The archive is read without torch and the outputs are compared without torch; only `onnx_form` and `loading` call it.
"""
