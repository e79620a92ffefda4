# SPDX-License-Identifier: Apache-2.0
"""The key that artifacts of tests are signed with, and machines that trust it."""

from __future__ import annotations

from pathlib import Path

from dovetail.trust.dsse import seal
from dovetail.trust.key_files import TrustedKeys, write_public_key
from dovetail.trust.keys import SigningKey
from dovetail.trust.policy import TrustMode

WORKER_KEY = SigningKey.generate()
"""Of this test process; a node in another process trusts it if `trust_worker` prepared its data directory."""


def trust_worker(folder: Path, *keys: SigningKey) -> TrustedKeys:
    """Trust the worker's key, or those given, by a folder of public keys."""
    for key in keys or (WORKER_KEY,):
        write_public_key(folder / f"{key.public.key_id[:16]}.pem", key.public)
    return TrustedKeys(TrustMode.SIGNED, folder)


def signed(manifest: bytes, *keys: SigningKey) -> bytes:
    """Envelope of a manifest by the worker's key, or by those given."""
    return seal(manifest, keys or (WORKER_KEY,))
