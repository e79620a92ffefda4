# SPDX-License-Identifier: Apache-2.0
"""Memory of batches is used again only if nobody can see it: not the engine, not a caller with views of an output."""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import Callable, Mapping

import numpy as np
import pytest

from dovetail.tensor import Array
from runtime_svc.configuration.serving_config import Buckets, ServingConfig
from runtime_svc.scheduling.buffers import LEAST_BYTES, BufferPool
from runtime_svc.scheduling.gathering import Gatherer
from runtime_svc.scheduling.layout import Layouts
from runtime_svc.scheduling.request import InferenceRequest
from runtime_svc.scheduling.ticket import Ticket

WIDTH = LEAST_BYTES  # of float32: one row is worth keeping
F4 = np.dtype(np.float32)


def take(pool: BufferPool, rows: int = 4, width: int = WIDTH) -> Array:
    return pool.take("x", F4, (width,), rows)


def address(array: Array) -> int:
    return int(array.ctypes.data)


def test_memory_that_nobody_sees_is_used_again() -> None:
    pool = BufferPool()
    first = address(take(pool))
    pool.settle([np.zeros(3)])

    assert address(take(pool)) == first
    assert pool.size_bytes == 4 * WIDTH * 4


@pytest.mark.parametrize(
    "hold",
    [
        lambda array: array,
        lambda array: array[1:2],
        lambda array: array[0].reshape(-1, 2).T,
        memoryview,
        lambda array: np.frombuffer(memoryview(array).cast("B"), np.uint8),
        lambda array: {"kept": [array[:1]]},
        lambda array: array.__dlpack__(),
    ],
    ids=["itself", "view", "view of a view", "memoryview", "buffer", "inside", "dlpack"],
)
def test_memory_that_somebody_sees_is_not_used_again_until_they_let_go(hold: Callable[[Array], object]) -> None:
    pool = BufferPool()
    array = take(pool)
    first, held = address(array), hold(array)
    del array
    pool.settle([])

    others = {address(take(pool)) for _ in range(6)}
    del held

    assert first not in others


def test_memory_under_an_output_that_holds_no_reference_is_given_up() -> None:
    pool = BufferPool()
    array = take(pool)
    first = address(array)
    bare = np.ctypeslib.as_array(ctypes.cast(first, ctypes.POINTER(ctypes.c_float)), (8,))
    kept = array  # what an engine's own reference count would do
    del array

    pool.settle([bare])

    assert pool.size_bytes == 0
    assert address(take(pool)) != address(kept)


def test_two_inputs_never_share_memory_and_little_is_kept() -> None:
    pool = BufferPool(max_bytes=64 * LEAST_BYTES)
    x, y = pool.take("x", F4, (WIDTH,), 1), pool.take("y", F4, (WIDTH,), 1)
    assert not np.may_share_memory(x, y)

    for width in range(WIDTH, WIDTH + 40):
        take(pool, 1, width)
    assert pool.size_bytes <= 64 * LEAST_BYTES
    assert take(pool, 1000).shape == (1000, WIDTH)  # larger than all that is kept
    assert take(pool, 1, 4).shape == (1, 4)  # too small to keep
    assert pool.take("s", np.dtype(object), (WIDTH,), 2).dtype == object


def tickets_of(config: ServingConfig, *feeds: Mapping[str, Array]) -> list[Ticket]:
    loop = asyncio.new_event_loop()
    loop.close()
    tickets = []
    for each in feeds:
        layout, length, bucket = Layouts(config, batched=True).place(each)
        request = InferenceRequest(each, rows=len(next(iter(each.values()))))
        tickets.append(Ticket(request, loop.create_future(), layout, length=length, bucket=bucket))
    return tickets


def test_the_arrays_of_one_request_are_passed_on_and_unaligned_ones_copied() -> None:
    config = ServingConfig()
    plain = np.ones((2, 3), np.float32)
    shifted = np.frombuffer(b"\0" + plain.tobytes(), np.uint8)[1:].view(np.float32).reshape(2, 3)
    assert not shifted.flags.aligned
    gatherer = Gatherer(config, batched=True)

    same = gatherer.gather(tickets_of(config, {"x": plain}), 2, 2)["x"]
    copied = gatherer.gather(tickets_of(config, {"x": shifted}), 2, 2)["x"]

    assert same is plain
    assert copied.flags.aligned
    np.testing.assert_array_equal(copied, plain)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint16, np.int8, np.bool_, object])
def test_gathered_rows_are_in_order_and_padding_repeats_the_last_row(dtype: type) -> None:
    config = ServingConfig()
    rows = [np.full((n, 2), b"%d" % n if dtype is object else n, dtype) for n in (1, 2)]

    feeds = Gatherer(config, batched=True).gather(tickets_of(config, *({"x": each} for each in rows)), 3, 5)

    expected = np.concatenate([*rows, rows[1][-1:], rows[1][-1:]])
    assert feeds["x"].dtype == expected.dtype
    assert feeds["x"].tolist() == expected.tolist()


def test_a_buffer_that_is_used_again_has_nothing_of_the_last_batch_in_its_padding() -> None:
    config = ServingConfig(buckets=Buckets({"x": 1}, (WIDTH,), {"x": -1}))
    gatherer = Gatherer(config, batched=True)
    long = tickets_of(config, {"x": np.full((2, WIDTH - 1), 9, np.float32)})
    short = tickets_of(config, {"x": np.full((1, 2), 5, np.float32)})
    first = address(gatherer.gather(long, 2, 2)["x"])
    gatherer.settle({})

    again = gatherer.gather(short, 1, 2)["x"]

    assert address(again) == first
    assert again[:, :2].tolist() == [[5, 5], [5, 5]]
    assert (again[:, 2:] == -1).all()


def test_text_and_numbers_are_lengthened_with_their_filling() -> None:
    buckets = Buckets({"t": 1, "n": 1}, (3,))
    config = ServingConfig(buckets=buckets)
    words = np.array([[b"a", b"b"]], dtype=object)

    feeds = Gatherer(config, batched=True).gather(
        tickets_of(config, {"t": words, "n": np.ones((1, 2), np.int64)}), 1, 1
    )

    assert feeds["t"].tolist() == [[b"a", b"b", b""]]
    assert feeds["n"].tolist() == [[1, 1, 0]]


def test_axes_of_a_model_without_a_batch_axis_are_lengthened_too() -> None:
    config = ServingConfig(buckets=Buckets({"x": 0}, (4,)))
    array = np.ones((2, 3), np.float32)
    layout, length, bucket = Layouts(config, batched=False).place({"x": array})
    loop = asyncio.new_event_loop()
    loop.close()
    ticket = Ticket(InferenceRequest({"x": array}), loop.create_future(), layout, length=length, bucket=bucket)

    feeds = Gatherer(config, batched=False).gather([ticket], 1, 1)

    assert feeds["x"].tolist() == [[1, 1, 1], [1, 1, 1], [0, 0, 0], [0, 0, 0]]
