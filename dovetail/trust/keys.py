# SPDX-License-Identifier: Apache-2.0
"""Ed25519 keys: making, naming, signing, checking, and their PEM form.

Only bytes in memory: which files hold keys, and who may read those, is `key_files`. The library (`cryptography`) is
imported when a key is first used, because it takes longer to import than a signature takes to check.

Source: RFC 8032 (Ed25519), RFC 8410 (its PKCS #8 and SubjectPublicKeyInfo forms), RFC 6962 section 3.2 (a key's id is
the SHA-256 of its SubjectPublicKeyInfo in DER).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from dovetail.digest import sha256_hex
from dovetail.errors import InvalidInputError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SHORT_ID_CHARS = 16
"""Of a key id, for people: 64 bits, more than anybody confuses by accident."""

_RAW_BYTES = 32
_SPKI_PREFIX = bytes.fromhex("302a300506032b6570032100")  # RFC 8410 section 4: only the 32 bytes after it differ


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A public key.

    Attributes:
        raw: Its 32 bytes.
    """

    raw: bytes

    def __post_init__(self) -> None:
        if len(self.raw) != _RAW_BYTES:
            raise InvalidInputError(f"an Ed25519 public key has {_RAW_BYTES} bytes, this one {len(self.raw)}")

    @property
    def key_id(self) -> str:
        """SHA-256 of its SubjectPublicKeyInfo, 64 hex digits."""
        return sha256_hex(_SPKI_PREFIX + self.raw)

    def verify(self, signature: bytes, message: bytes) -> bool:
        """True only if this key's owner signed that message; every other outcome is False."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, message)
        except (InvalidSignature, ValueError):
            return False
        return True

    def to_pem(self) -> bytes:
        """SubjectPublicKeyInfo as PEM; `PublicKey.from_pem(k.to_pem()) == k`."""
        from cryptography.hazmat.primitives import serialization as form
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        key = Ed25519PublicKey.from_public_bytes(self.raw)
        return key.public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)

    @staticmethod
    def from_pem(data: bytes) -> PublicKey:
        """Read one PEM block.

        Raises:
            InvalidInputError: It is no public key, or one of another kind.
        """
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization as form
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        if b"PRIVATE KEY" in data:
            raise InvalidInputError(
                "this is a private key, and only public ones belong here: remove it, and take it for known to others"
            )
        try:
            key = form.load_pem_public_key(data)
        except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
            raise InvalidInputError(f"no public key in PEM form: {type(exc).__name__}") from exc
        if not isinstance(key, Ed25519PublicKey):
            raise InvalidInputError(f"only Ed25519 keys are used, this one is a {type(key).__name__.lstrip('_')}")
        return PublicKey(key.public_bytes(form.Encoding.Raw, form.PublicFormat.Raw))


class SigningKey:
    """A private key with its public half. It never shows its bytes but in `to_pem`."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private

    @cached_property
    def public(self) -> PublicKey:
        """Its public half."""
        from cryptography.hazmat.primitives import serialization as form

        return PublicKey(self._private.public_key().public_bytes(form.Encoding.Raw, form.PublicFormat.Raw))

    def sign(self, message: bytes) -> bytes:
        """Signature of 64 bytes; the same message gives the same bytes."""
        return self._private.sign(message)

    def to_pem(self) -> bytes:
        """PKCS #8 without a password as PEM; `SigningKey.from_pem(k.to_pem()).public == k.public`."""
        from cryptography.hazmat.primitives import serialization as form

        return self._private.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())

    @staticmethod
    def generate() -> SigningKey:
        """A new key from the system's random numbers."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return SigningKey(Ed25519PrivateKey.generate())

    @staticmethod
    def from_pem(data: bytes) -> SigningKey:
        """Read one PEM block.

        Raises:
            InvalidInputError: It is no private key, one of another kind, or it has a password.
        """
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization as form
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        try:
            key = form.load_pem_private_key(data, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
            raise InvalidInputError(
                "no private key in PEM form without a password (PKCS #8): make one with `dovetail keys new`"
            ) from exc
        if not isinstance(key, Ed25519PrivateKey):
            raise InvalidInputError(f"only Ed25519 keys are used, this one is a {type(key).__name__.lstrip('_')}")
        return SigningKey(key)


def short(key_id: str) -> str:
    """A key id as people see it."""
    return key_id[:SHORT_ID_CHARS]
