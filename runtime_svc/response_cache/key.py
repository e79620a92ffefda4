# SPDX-License-Identifier: Apache-2.0
"""What makes two requests equal: the model, its artifacts, the outputs asked for, and every byte that goes in.

Every part goes into the digest with its length, so that no two different requests can look alike.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable

import numpy as np

from dovetail.tensor import Array
from runtime_svc.scheduling.request import InferenceRequest


def response_key(identity: Iterable[str], request: InferenceRequest) -> str:
    """Key of the reply to a request, 64 hex digits. Blocks for about a millisecond for each MiB of inputs.

    Args:
        identity: What answers: model, version and artifacts.
        request: What is asked. Deadline, timeout and priority are no part of it.
    """
    hasher = hashlib.sha256()
    for part in identity:
        _add(hasher, part.encode())
    _add(hasher, b"outputs")
    for name in sorted(request.outputs):
        _add(hasher, name.encode())
    _add(hasher, b"inputs")
    for name in sorted(request.feeds):
        array = request.feeds[name]
        _add(hasher, name.encode())
        _add(hasher, f"{array.dtype.str}{array.shape}".encode())
        _add_elements(hasher, array)
    return hasher.hexdigest()


def feed_bytes(request: InferenceRequest) -> int:
    """About how many bytes go into the key."""
    return sum(array.nbytes for array in request.feeds.values())


def _add(hasher: hashlib._Hash, part: bytes) -> None:
    hasher.update(struct.pack("<Q", len(part)))
    hasher.update(part)


def _add_elements(hasher: hashlib._Hash, array: Array) -> None:
    if array.dtype == object:
        for element in array.ravel(order="C"):
            _add(hasher, element.encode() if isinstance(element, str) else bytes(element))
    elif array.size:
        hasher.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
