# SPDX-License-Identifier: Apache-2.0
"""Message classes of the Open Inference Protocol, built from `oip.binpb` in a descriptor pool of their own.

Here are the messages only; the service (paths, stub, handler) is in `dovetail.pb.oip`, which is what others import.
It is not a generated module because those register in the process-wide pool, where a second file of package
`inference` makes `import tritonclient.grpc` fail. The stub file beside this one is generated, for type checkers.
"""

from __future__ import annotations

from importlib.resources import files

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.message_factory import GetMessageClassesForFiles

FILES = FileDescriptorSet.FromString(files("dovetail.pb").joinpath("oip.binpb").read_bytes())

_POOL = DescriptorPool()
for _file in FILES.file:
    _POOL.Add(_file)

_MESSAGES = GetMessageClassesForFiles([_file.name for _file in FILES.file], _POOL)
globals().update({name.removeprefix("inference."): cls for name, cls in _MESSAGES.items()})
DataType = EnumTypeWrapper(_POOL.FindEnumTypeByName("inference.DataType"))
globals().update(DataType.items())
