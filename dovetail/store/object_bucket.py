# SPDX-License-Identifier: Apache-2.0
"""The only door to an S3-compatible object store: requests with limits in number and time, its errors in our words.

Names in the bucket are the callers' business; so is what is in an object. Messages never hold a credential or what the
service answered beyond its error code, because such answers repeat parts of the signed request.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from dovetail.errors import DovetailError, IntegrityError, OverLimitError, UnavailableError, UnsupportedError
from dovetail.store.object_address import ObjectAddress

CONCURRENCY = 64
"""Requests at once of a process: enough to fill a link of 10 Gbit/s with chunks of 1 MiB at 50 ms each."""

CONNECT_TIMEOUT_S = 3.0
REQUEST_TIMEOUT_S = 10.0  # 1 MiB at 1 Mbit/s
RETRIES = 2
ANSWER_TIMEOUT_S = 25.0
"""Longest wait for an answer with all tries: who calls our services gives up after 30 s."""

PAGE = 1000  # names in one answer to a listing, the most that S3 gives

_CODE = re.compile(r"<Code>(\w{1,60})</Code>")
_STATUS = re.compile(r"status code: (\d{3})")
_KIND = re.compile(r"\bkind: (Connect|Timeout|Request|Interrupted|Decode)\b")  # of a request that got no answer
_FULL = ("QuotaExceeded", "InsufficientStorage", "XMinioStorageFull", "HTTP 507")
_NO_BUCKET = "NoSuchBucket"
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class ObjectEntry:
    """One object.

    Attributes:
        name: Below the prefix.
        size_bytes: Of its content.
        modified_ms: When it was last written, by the service's clock, exact to a second.
    """

    name: str
    size_bytes: int
    modified_ms: int


class ObjectBucket:
    """Objects below one prefix of a bucket; safe to use concurrently from tasks of one event loop.

    All methods raise UnavailableError if the service does not answer or refuses us, OverLimitError if it is full.
    """

    def __init__(self, store: Any, address: ObjectAddress) -> None:
        import obstore

        self._library: Any = obstore
        self._store = store
        self._address = address
        self._slots = asyncio.Semaphore(CONCURRENCY)

    async def get(self, name: str, *, limit_bytes: int) -> bytes | None:
        """The content, or None if there is no such object. IntegrityError if it is larger than the limit."""
        async with self._answered(f"read {name}"):
            try:
                found = await self._library.get_async(self._store, name)
                size_bytes = int(found.meta["size"])
                if size_bytes > limit_bytes:
                    raise IntegrityError(f"{name} in {self._address} has {size_bytes} bytes, at most {limit_bytes} fit")
                return bytes(await found.bytes_async())
            except FileNotFoundError as exc:
                if _NO_BUCKET in str(exc):
                    raise
                return None

    async def put(self, name: str, data: bytes) -> None:
        """Write or replace an object; there whole and for good when it returns."""
        async with self._answered(f"write {name}"):
            await self._library.put_async(self._store, name, data, use_multipart=False)

    async def create(self, name: str, data: bytes) -> bool:
        """Write an object unless there is one; returns whether it was written."""
        async with self._answered(f"create {name}"):
            try:
                await self._library.put_async(self._store, name, data, mode="create")
            except self._library.exceptions.AlreadyExistsError:
                return False
            return True

    async def head(self, name: str) -> ObjectEntry | None:
        """Size and time of an object, or None if there is none."""
        async with self._answered(f"look for {name}"):
            try:
                return _entry(await self._library.head_async(self._store, name))
            except FileNotFoundError:
                return None

    async def delete(self, *names: str) -> None:
        """Remove objects; removing what is not there is harmless."""
        async with self._answered(f"delete {names[0]}"):
            await self._library.delete_async(self._store, list(names))

    async def list(self, folder: str) -> AsyncIterator[Sequence[ObjectEntry]]:
        """All objects below a folder ("" for the whole prefix), page by page, in no order."""
        what = f"list {folder or 'everything'}"
        async with self._answered(what):
            stream = self._library.list(self._store, prefix=folder or None, chunk_size=PAGE)
        pages = aiter(stream)
        while True:
            async with self._answered(what):
                page = await anext(pages, None)
            if page is None:
                return
            yield [_entry(item) for item in page]

    async def folders(self, folder: str) -> Sequence[str]:
        """Names of the folders right below a folder, without its name, sorted."""
        async with self._answered(f"list {folder}"):
            found = await self._library.list_with_delimiter_async(self._store, prefix=folder)
        return sorted(str(name).rstrip("/").rpartition("/")[2] for name in found["common_prefixes"])

    @asynccontextmanager
    async def _answered(self, action: str) -> AsyncIterator[None]:
        try:
            async with self._slots, asyncio.timeout(ANSWER_TIMEOUT_S):
                yield
        except DovetailError:
            raise
        except TimeoutError as exc:
            raise self._unavailable(action, f"no answer within {ANSWER_TIMEOUT_S:.0f} s") from exc
        except (self._library.exceptions.BaseError, OSError, ValueError) as exc:
            raise self._translated(action, exc) from None  # its text repeats parts of the signed request

    def _translated(self, action: str, error: Exception) -> DovetailError:
        text = str(error)
        why = _reason(text) or type(error).__name__
        if why in _FULL:
            return OverLimitError(
                f"could not {action}: {self._address} is full ({why}); raise its quota or delete models"
            )
        exceptions = self._library.exceptions
        if isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError):
            return UnavailableError(
                f"could not {action}: {self._address} refuses our credentials ({why}); correct AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or what they may do with the bucket"
            )
        if isinstance(error, FileNotFoundError) or why == _NO_BUCKET:
            return UnavailableError(
                f"could not {action}: {self._address} has no such bucket; create it or correct DOVETAIL_BLOB_URL"
            )
        return self._unavailable(action, why)

    def _unavailable(self, action: str, why: str) -> UnavailableError:
        return UnavailableError(
            f"could not {action}: {self._address} does not serve it ({why}); check the service, the network, and "
            "DOVETAIL_BLOB_URL"
        )


def open_bucket(address: ObjectAddress) -> ObjectBucket:
    """Prepare a bucket; nothing is sent yet. Region and credentials come from the AWS_* variables.

    Raises:
        UnsupportedError: The library that it needs is not installed.
    """
    try:
        from obstore.store import S3Store
    except ImportError as exc:
        raise UnsupportedError("an object store needs the extra [s3]: pip install 'dovetail[s3]'") from exc
    options: dict[str, Any] = {"virtual_hosted_style_request": not address.path_style}
    if address.endpoint:
        options["endpoint"] = address.endpoint
    if address.region:
        options["region"] = address.region
    client: dict[str, Any] = {
        "timeout": timedelta(seconds=REQUEST_TIMEOUT_S),
        "connect_timeout": timedelta(seconds=CONNECT_TIMEOUT_S),
    }
    if address.endpoint.startswith("http://"):
        client["allow_http"] = True
    store = S3Store(
        address.bucket,
        prefix=address.prefix or None,
        client_options=client,
        retry_config={"max_retries": RETRIES, "retry_timeout": timedelta(seconds=ANSWER_TIMEOUT_S)},
        **options,
    )
    return ObjectBucket(store, address)


async def all_of(*calls: Awaitable[_T]) -> list[_T]:
    """Results of calls that run at once; the first error ends the others."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def _reason(text: str) -> str:
    code, status, kind = _CODE.search(text), _STATUS.search(text), _KIND.search(text)
    if code:
        return code[1]
    if status:
        return f"HTTP {status[1]}"
    return f"{kind[1].lower()} failed" if kind else ""


def _entry(meta: Any) -> ObjectEntry:
    return ObjectEntry(str(meta["path"]), int(meta["size"]), int(meta["last_modified"].timestamp() * 1000))
