# SPDX-License-Identifier: Apache-2.0
"""The status of a call that its peer ended while messages were still being sent to it.

A server may refuse an upload long before its end, or stop while a stream is open. A write that is under way then fails,
and grpc.aio (seen in 1.72.1 and 1.85.1) puts INTERNAL, "Internal error from Core", in place of the status that has just
come: of a thousand uploads that were refused at once, a hundred lost the reason. The status was there for a moment, and
done callbacks are called in it.
"""

from __future__ import annotations

from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import grpc
import grpc.aio

T = TypeVar("T")
_LOST = "Internal error from Core"


@contextmanager
def true_end(call: Any) -> Iterator[None]:
    """Inside, a call that was just made and sends a stream fails with the status that its peer gave.

    Args:
        call: One of grpc.aio.

    Raises:
        grpc.aio.AioRpcError: With that status.
    """
    ended: list[grpc.aio.AioRpcError] = []
    call.add_done_callback(lambda done: ended.append(_end_of(done)))
    try:
        yield
    except grpc.aio.AioRpcError as error:
        if error.details() == _LOST and ended[0].code() is not grpc.StatusCode.OK:
            raise ended[0] from None
        raise


def _end_of(call: Any) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(
        code=_now(call.code()),
        initial_metadata=_now(call.initial_metadata()),
        trailing_metadata=_now(call.trailing_metadata()),
        details=_now(call.details()),
        debug_error_string=_now(call.debug_error_string()),
    )


def _now(ready: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns that has nothing to wait for, without giving others a turn."""
    try:
        ready.send(None)
    except StopIteration as end:
        value: T = end.value
        return value
    ready.close()
    raise RuntimeError("the call has not ended")
