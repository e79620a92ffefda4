# SPDX-License-Identifier: Apache-2.0
"""A lane: one stream of the GPU with its execution contexts, on which requests run one after the other.

A request is copied into pinned memory, and then the stream is given the copy to the device, the run and the copy back
without waiting in between; the one wait is at the end. Lanes do not wait for each other, so the copies of one request
overlap the computing of another.

Shapes that come again get a context of their own, whose run is recorded as a CUDA graph; all others take turns on one
context, which is bound anew. How many are kept is bounded, and a rare shape does not push out one in use.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from dovetail.engines.cuda_memory import Buffer
from dovetail.engines.cuda_stream import Stream
from dovetail.engines.tensorrt_context import BoundContext, Loaded
from dovetail.engines.tensorrt_io import IoTensor, Shape, layout_of
from dovetail.engines.tensorrt_profiles import Profile, choose_profile
from dovetail.tensor import NUMPY_DTYPES, Array

SETTLED_SHAPES = 8
"""Shapes with a context and a graph of their own, for each lane; a batcher forms few batch sizes."""

_REMEMBERED_SHAPES = 64
_IDLE_RUNS = 64
"""A settled shape may be pushed out after that many runs of others; making a context costs milliseconds."""


class ContextShelf:
    """Which context a run takes: a settled one of its own, or the roaming one. Used by one thread at a time.

    Args:
        make: Makes a context.
        keep: Most settled contexts; 0: none.
    """

    def __init__(self, make: Callable[[], BoundContext], *, keep: int) -> None:
        self._make = make
        self._keep = keep
        self._roaming: BoundContext | None = None
        self._settled: OrderedDict[object, tuple[BoundContext, int]] = OrderedDict()
        self._seen: OrderedDict[object, None] = OrderedDict()
        self._runs = 0

    def pick(self, key: object) -> tuple[BoundContext, bool]:
        """The context for shapes of that key, and True if it is theirs alone.

        Raises:
            EngineError: One had to be made and TensorRT made none.
        """
        self._runs += 1
        known = self._settled.pop(key, None)
        if known is None and self._may_settle(key):
            known = (self._take_roaming(), 0)
        if known is not None:
            self._settled[key] = (known[0], self._runs)
            return known[0], True
        self._seen[key] = None
        self._seen.move_to_end(key)
        if len(self._seen) > _REMEMBERED_SHAPES:
            self._seen.popitem(last=False)
        if self._roaming is None:
            self._roaming = self._make()
        return self._roaming, False

    def close(self) -> None:
        """Close all contexts."""
        for context, _ in self._settled.values():
            context.close()
        self._settled.clear()
        if self._roaming is not None:
            self._roaming.close()
            self._roaming = None

    def _may_settle(self, key: object) -> bool:
        if not self._keep or key not in self._seen:
            return False
        if len(self._settled) < self._keep:
            return True
        oldest, (context, last_run) = next(iter(self._settled.items()))
        if self._runs - last_run < _IDLE_RUNS:
            return False
        del self._settled[oldest]
        context.close()
        return True

    def _take_roaming(self) -> BoundContext:
        """The roaming context settles: most often it is bound to the very shapes."""
        found, self._roaming = self._roaming, None
        return found if found is not None else self._make()


class Lane:
    """One stream. Used by one thread at a time.

    Args:
        loaded: The engine and what belongs to it.
        graphs: False: never record graphs.

    Raises:
        EngineError: The runtime failed.
        OverLimitError: No memory for the scratch of its contexts.
    """

    def __init__(self, loaded: Loaded, *, graphs: bool) -> None:
        self._loaded = loaded
        self._inputs = [tensor for tensor in loaded.tensors if tensor.is_input]
        self._device_inputs = [tensor for tensor in self._inputs if not tensor.on_host]
        self._steering = [tensor.name for tensor in self._inputs if tensor.on_host or tensor.steers_shapes]
        self._profiles: dict[object, Profile] = {}
        self._stream = Stream(loaded.cuda)
        self._scratch: Buffer | None = None
        try:
            size_bytes = int(loaded.engine.device_memory_size_v2)
            self._scratch = loaded.device_pool.take(size_bytes) if size_bytes else None
        except BaseException:
            self._stream.close()
            raise
        make = partial(BoundContext, loaded, self._stream, self._scratch)  # no cycle: the engine must go when we do
        self._shelf = ContextShelf(make, keep=SETTLED_SHAPES if graphs else 0)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once, with dense arrays of the right dtypes.

        Raises:
            InvalidInputError: No optimisation profile holds these shapes.
            EngineError: TensorRT or the CUDA runtime failed.
            OverLimitError: No memory left for inputs or outputs.
        """
        lent: list[Buffer] = []
        try:
            return self._run(feeds, lent)
        except BaseException:
            self._stream.drain()
            raise
        finally:
            for buffer in lent:
                self._loaded.pinned_pool.give(buffer)

    def close(self) -> None:
        """Free contexts, their memory and the stream, in that order; nothing runs on it any more."""
        self._stream.drain()
        self._shelf.close()
        if self._scratch is not None:
            self._loaded.device_pool.give(self._scratch)
            self._scratch = None
        self._stream.close()

    def _run(self, feeds: Mapping[str, Array], lent: list[Buffer]) -> dict[str, Array]:
        shapes = {name: array.shape for name, array in feeds.items()}
        values = {name: tuple(int(item) for item in feeds[name].ravel()) for name in self._steering}
        key = (tuple(shapes.items()), tuple(values.items()))
        profile = self._profiles.get(key)
        if profile is None:
            profile = choose_profile(self._loaded.profiles, shapes, values)
            if len(self._profiles) >= _REMEMBERED_SHAPES:
                self._profiles.clear()
            self._profiles[key] = profile
        context, settled = self._shelf.pick(key)
        context.bind(key, profile, feeds)
        self._copy_in(context, feeds, lent)
        context.enqueue(record=settled)
        pinned, offsets, outputs = self._copy_out(context, lent)
        self._stream.wait()
        results = context.host_outputs()
        for tensor, shape in outputs:
            results[tensor.name] = _view(pinned, tensor, shape, offsets[tensor.name]).copy()
        return {tensor.name: results[tensor.name] for tensor in self._loaded.tensors if not tensor.is_input}

    def _copy_in(self, context: BoundContext, feeds: Mapping[str, Array], lent: list[Buffer]) -> None:
        layout = context.layout_in
        pinned = self._loaded.pinned_pool.take(layout.size_bytes)
        lent.append(pinned)
        for tensor in self._device_inputs:
            array = feeds[tensor.name]
            np.copyto(_view(pinned, tensor, array.shape, layout.offsets[tensor.name]), array)
        self._stream.copy_in(context.input_buffer, pinned, layout.size_bytes)

    def _copy_out(
        self, context: BoundContext, lent: list[Buffer]
    ) -> tuple[Buffer, Mapping[str, int], list[tuple[IoTensor, Shape]]]:
        """Enqueue the copies of the device's outputs: one for all where they lie in one buffer."""
        outputs = context.device_outputs()
        block = context.output_block()
        shapes = {tensor.name: shape for tensor, shape, _ in outputs}
        layout = block[1] if block else layout_of([tensor for tensor, _, _ in outputs], shapes)
        pinned = self._loaded.pinned_pool.take(layout.size_bytes)
        lent.append(pinned)
        if block:
            self._stream.copy_out(pinned, 0, block[0].address, layout.size_bytes)
        else:
            for tensor, shape, address in outputs:
                self._stream.copy_out(pinned, layout.offsets[tensor.name], address, tensor.size_bytes(shape))
        return pinned, layout.offsets, [(tensor, shape) for tensor, shape, _ in outputs]


def _view(pinned: Buffer, tensor: IoTensor, shape: Shape, offset: int) -> Array:
    raw = pinned.bytes_view(offset, tensor.size_bytes(shape))
    return raw.view(NUMPY_DTYPES[tensor.spec.datatype]).reshape(shape)
