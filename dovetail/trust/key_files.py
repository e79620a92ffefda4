# SPDX-License-Identifier: Apache-2.0
"""Keys in files: a worker's private key, which only its owner may read, and the public keys that a machine trusts.

Errors name the file without its folder. Blocks: call it off the event loop.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path

from dovetail.errors import AlreadyExistsError, DovetailError, InvalidInputError, NotFoundError, UnavailableError
from dovetail.store.durable import (
    PRIVATE_FOLDER_MODE,
    TEMPORARY_SUFFIX,
    disk_errors,
    make_folder,
    sync_folder,
    write_durable,
)
from dovetail.trust.keys import PublicKey, SigningKey
from dovetail.trust.policy import TrustedKey, TrustMode, TrustPolicy

_log = logging.getLogger(__name__)

PRIVATE_KEY_MODE = 0o600
PUBLIC_KEY_MODE = 0o644
KEY_SUFFIX = ".pem"
MAX_KEY_FILE_BYTES = 64 << 10
MAX_TRUSTED_FILES = 256

_BLOCK = re.compile(rb"-----BEGIN [A-Z0-9 ]+-----.*?-----END [A-Z0-9 ]+-----", re.DOTALL)


def read_signing_key(path: Path) -> SigningKey:
    """The private key in a file.

    Raises:
        NotFoundError: There is no such file.
        InvalidInputError: Others than its owner may read it, the owner is another user, or it is no key.
        UnavailableError: It cannot be read.
    """
    data, status = _read(path)
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        raise InvalidInputError(
            f"the signing key {path.name} can be read by others than its owner (mode {mode:04o}): "
            f"run `chmod 600 {path.name}`, and replace the key if others may have read it"
        )
    if status.st_uid not in (os.geteuid(), 0):
        raise InvalidInputError(
            f"the signing key {path.name} belongs to another user (uid {status.st_uid}): give it to the user that "
            f"the worker runs as, `chown {os.geteuid()} {path.name}`"
        )
    try:
        return SigningKey.from_pem(data)
    except InvalidInputError as exc:
        raise InvalidInputError(f"{path.name}: {exc}") from exc


def write_signing_key(path: Path, key: SigningKey) -> None:
    """Keep a private key in a new file that only its owner may read.

    Raises:
        AlreadyExistsError: There is a file of that name; a key is never written over.
        UnavailableError: It cannot be written.
    """
    make_folder(path.parent, mode=PRIVATE_FOLDER_MODE)
    fresh = path.with_name(f".{secrets.token_hex(8)}{TEMPORARY_SUFFIX}")
    try:
        write_durable(fresh, key.to_pem(), what=f"key {path.name}", mode=PRIVATE_KEY_MODE)
        with disk_errors(f"write key {path.name}", setting="the key file"):
            os.link(fresh, path)  # unlike a rename it fails if there is one, also if that came this moment
            sync_folder(path.parent)
    except UnavailableError as exc:
        if isinstance(exc.__cause__, FileExistsError):
            raise AlreadyExistsError(
                f"there is a key {path.name} already, and it is not replaced: choose another name"
            ) from exc
        raise
    finally:
        fresh.unlink(missing_ok=True)


def write_public_key(path: Path, key: PublicKey) -> None:
    """Keep a public key in a file that everybody may read; replaces what is there."""
    make_folder(path.parent)
    write_durable(path, key.to_pem(), what=f"public key {path.name}", mode=PUBLIC_KEY_MODE)


def read_or_make_signing_key(path: Path) -> tuple[SigningKey, bool]:
    """The key in that file, made first if there is none, with its public half beside it as `<name>.pub.pem`.

    Returns:
        The key, and whether it was made now.
    """
    try:
        return read_signing_key(path), False
    except NotFoundError:
        key = SigningKey.generate()
    try:
        write_signing_key(path, key)
    except AlreadyExistsError:  # another process was faster
        return read_signing_key(path), False
    write_public_key(public_path(path), key.public)
    return key, True


def public_path(path: Path) -> Path:
    """Where the public half of the key in that file is kept."""
    return path.with_name(f"{path.stem}.pub{KEY_SUFFIX}")


def read_public_keys(path: Path) -> tuple[PublicKey, ...]:
    """All public keys in one file, which may hold several PEM blocks.

    Raises:
        NotFoundError: There is no such file.
        InvalidInputError: It holds none, or something else.
        UnavailableError: It cannot be read.
    """
    data, _ = _read(path)
    try:
        keys = tuple(PublicKey.from_pem(block) for block in _BLOCK.findall(data))
    except InvalidInputError as exc:
        raise InvalidInputError(f"{path.name}: {exc}") from exc
    if not keys:
        raise InvalidInputError(f"{path.name} holds no public key in PEM form")
    return keys


@dataclass(frozen=True, slots=True)
class TrustedKeys:
    """Where the keys are that a machine trusts; read anew for each decision, so replacing keys needs no restart.

    Attributes:
        mode: What the machine asks for.
        path: A file, or a folder whose files named *.pem count; None: no key is trusted.
    """

    mode: TrustMode
    path: Path | None = None

    def policy(self) -> TrustPolicy:
        """What the machine trusts now. A file that cannot be read is left out, and the log says so."""
        keys: dict[str, TrustedKey] = {}
        for file in self._files():
            try:
                for key in read_public_keys(file):
                    keys.setdefault(key.key_id, TrustedKey(_name(file), key))
            except DovetailError as exc:
                _log.error("trust.key_unreadable file=%s why=%r", file.name, str(exc))
        return TrustPolicy(self.mode, tuple(keys.values()))

    def _files(self) -> list[Path]:
        if self.path is None:
            return []
        try:
            if not self.path.is_dir():
                return [self.path]
            found = sorted(file for file in self.path.iterdir() if file.name.endswith(KEY_SUFFIX))
        except OSError as exc:
            _log.error("trust.keys_unreadable why=%r", os.strerror(exc.errno or 0))
            return []
        if len(found) > MAX_TRUSTED_FILES:
            _log.error("trust.too_many_keys files=%d used=%d", len(found), MAX_TRUSTED_FILES)
        return found[:MAX_TRUSTED_FILES]


def _name(file: Path) -> str:
    return "".join(char if char.isascii() and (char.isalnum() or char in "._-") else "?" for char in file.stem[:64])


def _read(path: Path) -> tuple[bytes, os.stat_result]:
    """A key file's content and state, both through one descriptor: what was judged is what was read."""
    with disk_errors(f"read the key file {path.name}", setting="the key file"):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            raise NotFoundError(f"there is no key file {path.name}: make one with `dovetail keys new`") from None
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise InvalidInputError(f"{path.name} is not a file with a key")
            data = file.read(MAX_KEY_FILE_BYTES + 1)
    if len(data) > MAX_KEY_FILE_BYTES:
        raise InvalidInputError(f"{path.name} is too large for a key: at most {MAX_KEY_FILE_BYTES} bytes are read")
    return data, status
