# SPDX-License-Identifier: Apache-2.0
"""Run by test_tritonclient.py in tritonclient's venv: prints its descriptors as a FileDescriptorSet in base64."""

from __future__ import annotations

import base64

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from tritonclient.grpc import model_config_pb2, service_pb2

files = FileDescriptorSet()
for module in (model_config_pb2, service_pb2):
    module.DESCRIPTOR.CopyToProto(files.file.add())
print(base64.b64encode(files.SerializeToString()).decode())
