# SPDX-License-Identifier: Apache-2.0
"""Takes the files that a bundle names out of a zip, and nothing else, so that no archive can write or read elsewhere.

An archive is refused as a whole for a name that leaves it, a link, an encrypted member or two members of one name.
Sizes are counted while they unpack, because an archive can lie about them.
"""

from __future__ import annotations

import stat
import zipfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath

from dovetail.errors import InvalidInputError, OverLimitError
from dovetail.zip_damage import telling_damage

MAX_MEMBERS = 4096
MAX_UNPACKED_BYTES = 8 << 30
"""More than a service takes in one push (6 GiB by default), and what a bomb may fill of a disk."""

_COPY_BYTES = 1 << 20


class BundleZip:
    """A zip whose members were all checked. Use `open_zip`."""

    def __init__(self, archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo]) -> None:
        self._archive = archive
        self._members = members
        self._unpacked = 0

    def read(self, name: str, limit: int) -> bytes:
        """At most limit + 1 bytes of a member.

        Raises:
            InvalidInputError: There is none of that name.
        """
        if name not in self._members:
            raise InvalidInputError(f"the zip has no {name} at its top")
        with self._archive.open(self._members[name]) as source:
            return source.read(limit + 1)

    def extract(self, names: Collection[str], into: Path) -> None:
        """Unpack files, and of folders the files right inside them; names that are not there are left out.

        Raises:
            OverLimitError: More than MAX_UNPACKED_BYTES come out, over all calls.
        """
        for name, member in self._members.items():
            if name in names or str(PurePosixPath(name).parent) in names:
                target = into / name
                target.parent.mkdir(parents=True, exist_ok=True)
                self._copy(member, target)

    def _copy(self, member: zipfile.ZipInfo, target: Path) -> None:
        with self._archive.open(member) as source, target.open("xb") as file:
            while piece := source.read(_COPY_BYTES):
                self._unpacked += len(piece)
                if self._unpacked > MAX_UNPACKED_BYTES:
                    raise OverLimitError(f"the zip unpacks to more than {MAX_UNPACKED_BYTES} bytes")
                file.write(piece)


@contextmanager
def open_zip(path: Path) -> Iterator[BundleZip]:
    """The archive, with every member checked before any is read.

    Raises:
        InvalidInputError: Not a zip, or a member that is refused; also while it is read.
        OverLimitError: More than MAX_MEMBERS members.
    """
    with (
        telling_damage(lambda why: InvalidInputError(f"{path.name} is not a readable zip: {why}")),
        zipfile.ZipFile(path) as archive,
    ):
        yield BundleZip(archive, _checked(archive.infolist()))


def _checked(members: list[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    if len(members) > MAX_MEMBERS:
        raise OverLimitError(f"the zip has {len(members)} members, at most {MAX_MEMBERS} are read")
    found: dict[str, zipfile.ZipInfo] = {}
    for member in members:
        name = member.orig_filename
        path = PurePosixPath(name)
        if not name or path.is_absolute() or ".." in path.parts or "\\" in name or PureWindowsPath(name).drive:
            raise InvalidInputError(f"zip member {name[:200]!r} leaves the archive; nothing was unpacked")
        kind = stat.S_IFMT(member.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise InvalidInputError(f"zip member {name[:200]!r} is a link or a device; pack the file itself")
        if member.flag_bits & 1:
            raise InvalidInputError(f"zip member {name[:200]!r} is encrypted; pack it without a password")
        if member.is_dir():
            continue
        if path.as_posix() in found:
            raise InvalidInputError(f"the zip has two members called {path.as_posix()[:200]!r}")
        found[path.as_posix()] = member
    return found
