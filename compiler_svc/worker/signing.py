# SPDX-License-Identifier: Apache-2.0
"""The keys that a worker signs its manifests with, from its settings.

Which files those are is said by the operator; how an envelope looks is `dovetail.trust.dsse`'s. The keys stay in this
process: children that build foreign models are not shown the files (`compiler_svc.worker.confined`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dovetail.digest import check_digest
from dovetail.errors import InvalidInputError, NotFoundError
from dovetail.trust.dsse import MAX_SIGNATURES, seal
from dovetail.trust.key_files import KEY_SUFFIX, read_or_make_signing_key, read_signing_key, write_public_key
from dovetail.trust.keys import SigningKey, short

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SigningSettings:
    """Where the keys are.

    Attributes:
        keys: Files with private keys; each manifest is signed with all of them. None: manifests are not signed.
        make: Make a key where a file is missing.
        public_folder: Where the public halves are put for nodes to trust, or None.
    """

    keys: tuple[Path, ...] = ()
    make: bool = False
    public_folder: Path | None = None


@dataclass(frozen=True, slots=True)
class Signer:
    """Signs manifests; one without keys signs nothing."""

    keys: tuple[SigningKey, ...] = ()

    def seal(self, manifest: bytes) -> bytes:
        """Envelope of a manifest's bytes; b"" if this worker has no key."""
        return seal(manifest, self.keys) if self.keys else b""


def open_signer(settings: SigningSettings) -> Signer:
    """Read the keys, make what may be made, and say loudly if nothing will be signed. Blocks.

    Raises:
        NotFoundError: A key is not there.
        InvalidInputError: A file is no key, or others may read it.
        UnavailableError: A file cannot be read or written.
    """
    signer = Signer(tuple(_open(path, make=settings.make) for path in settings.keys))
    if not signer.keys:
        _log.warning(
            "worker.signs_nothing meaning=%r",
            "nodes refuse what it builds unless they run with DOVETAIL_TRUST=any; set DOVETAIL_SIGNING_KEY "
            "(`dovetail keys new` makes a key)",
        )
        return signer
    for key in signer.keys:
        public = key.public
        if settings.public_folder is not None:
            write_public_key(settings.public_folder / f"{check_digest(public.key_id)}{KEY_SUFFIX}", public)
        _log.info("worker.signs key=%s", short(public.key_id))
    return signer


def read_key_paths(text: str) -> tuple[Path, ...]:
    """Key files from "a.pem,b.pem".

    Raises:
        InvalidInputError: More than an envelope has signatures.
    """
    paths: Sequence[Path] = [Path(part.strip()) for part in text.split(",") if part.strip()]
    if len(paths) > MAX_SIGNATURES:
        raise InvalidInputError(f"{len(paths)} keys are named, a manifest is signed with {MAX_SIGNATURES} at most")
    return tuple(paths)


def _open(path: Path, *, make: bool) -> SigningKey:
    if not make:
        try:
            return read_signing_key(path)
        except NotFoundError as exc:
            raise NotFoundError(f"DOVETAIL_SIGNING_KEY: {exc}, or set DOVETAIL_MAKE_KEY=yes") from exc
    key, fresh = read_or_make_signing_key(path)
    if fresh:
        _log.info("worker.made_key key=%s", short(key.public.key_id))
    return key
