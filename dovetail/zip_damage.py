# SPDX-License-Identifier: Apache-2.0
"""What Python's zip reader raises for archives that are damaged, encrypted or packed in a way that it cannot read.

It documents `BadZipFile` only; the decompressors raise families of their own, and each reader of foreign archives
would miss another one of them.

Source: CPython's zipfile (NotImplementedError: unknown compression or version; RuntimeError: encrypted), zlib, lzma,
and bz2, whose damage is an OSError without a number.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dovetail.errors import DovetailError, brief

_DAMAGE: tuple[type[Exception], ...] = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)
try:
    from lzma import LZMAError
except ImportError:  # a Python without it cannot read such members, and says so with one of the others
    pass
else:
    _DAMAGE += (LZMAError,)


@contextmanager
def telling_damage(error: Callable[[str], DovetailError]) -> Iterator[None]:
    """Turn whatever says that an archive cannot be read into one error; the disk's own errors pass.

    Args:
        error: Makes it from the reader's words.
    """
    try:
        yield
    except _DAMAGE as exc:
        raise error(brief(str(exc), 200)) from exc
    except OSError as exc:
        if exc.errno is not None:
            raise
        raise error(brief(str(exc), 200)) from exc
