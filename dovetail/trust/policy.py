# SPDX-License-Identifier: Apache-2.0
"""Whose artifacts a machine takes, and why it refuses the others. Pure: keys and bytes come in, a verdict goes out.

There is one way to a yes: the envelope reads, its payload is the very manifest, and a trusted key signed it. Everything
else raises, so a caller cannot mistake a failed check for a passed one.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from dovetail.errors import InvalidInputError, UntrustedError
from dovetail.trust.dsse import MANIFEST_TYPE, Envelope
from dovetail.trust.keys import PublicKey, short


class TrustMode(StrEnum):
    """What a machine asks for."""

    SIGNED = "signed"
    """Only what one of its trusted keys signed."""

    ANY = "any"
    """Whatever its service offers; for trials, and where the disk and the network are the only guard there needs be."""


class TrustReason(StrEnum):
    """Why an artifact is refused; first word of the refusal's text, in brackets."""

    UNSIGNED = "unsigned"
    NO_KEYS = "no-trusted-keys"
    UNREADABLE = "unreadable-envelope"
    OTHER_TYPE = "other-payload-type"
    OTHER_PAYLOAD = "other-payload"
    FOREIGN_KEY = "foreign-key"
    BAD_SIGNATURE = "bad-signature"


@dataclass(frozen=True, slots=True)
class TrustedKey:
    """A key that a machine trusts.

    Attributes:
        name: What its operator calls it, for logs.
        key: The key.
    """

    name: str
    key: PublicKey

    def __str__(self) -> str:
        return f"{self.name} ({short(self.key.key_id)})"


@dataclass(frozen=True, slots=True)
class TrustPolicy:
    """What a machine trusts.

    Attributes:
        mode: What it asks for.
        keys: Whom it trusts; several while keys are being replaced.
    """

    mode: TrustMode
    keys: tuple[TrustedKey, ...] = ()

    def check(self, manifest: bytes, envelope: bytes, what: str) -> TrustedKey | None:
        """Decide about one artifact.

        Args:
            manifest: The bytes of its manifest.
            envelope: What came with it; b"" if nothing did.
            what: The artifact, for the text of a refusal.

        Returns:
            The trusted key that signed it; None if the mode is "any" and none did.

        Raises:
            UntrustedError: It is refused. The text begins with a TrustReason, and says what to do.
        """
        try:
            return self._signer(manifest, envelope, what)
        except UntrustedError:
            if self.mode is TrustMode.ANY:
                return None
            raise

    def _signer(self, manifest: bytes, envelope: bytes, what: str) -> TrustedKey:
        if not envelope:
            raise _refusal(
                TrustReason.UNSIGNED,
                f"{what} has no signature, and this machine takes only what {self._asked()} signed: give its worker a "
                "key (DOVETAIL_SIGNING_KEY) and build it again, or set DOVETAIL_TRUST=any here",
            )
        if not self.keys:
            raise _refusal(
                TrustReason.NO_KEYS,
                f"{what} is signed, but this machine trusts no key: put the worker's public key where "
                "DOVETAIL_TRUSTED_KEYS points",
            )
        try:
            sealed = Envelope.from_bytes(envelope)
        except InvalidInputError as exc:
            raise _refusal(TrustReason.UNREADABLE, f"{what} comes with what is no envelope: {exc}") from exc
        if sealed.payload_type != MANIFEST_TYPE:
            kind = sealed.payload_type[:80]
            raise _refusal(TrustReason.OTHER_TYPE, f"{what} comes with a signed {kind!r}, expected {MANIFEST_TYPE}")
        if not hmac.compare_digest(sealed.payload, manifest):
            raise _refusal(
                TrustReason.OTHER_PAYLOAD,
                f"{what} comes with the envelope of another manifest, or its manifest was changed: build it again",
            )
        return self._first_signer(sealed, what)

    def _first_signer(self, sealed: Envelope, what: str) -> TrustedKey:
        message, claimed = sealed.signed_bytes(), False
        for signature in sealed.signatures:
            for trusted in self.keys:
                if trusted.key.key_id != signature.key_id:
                    continue
                claimed = True
                if trusted.key.verify(signature.signature, message):
                    return trusted
        if claimed:
            raise _refusal(
                TrustReason.BAD_SIGNATURE,
                f"{what} names a trusted key, but that key did not sign these bytes: they were changed on the way",
            )
        signers = ", ".join(dict.fromkeys(short(item.key_id) for item in sealed.signatures))
        raise _refusal(
            TrustReason.FOREIGN_KEY,
            f"{what} is signed by key {signers}, and this machine trusts only {self._asked()}: if you trust that "
            "worker, add its public key where DOVETAIL_TRUSTED_KEYS points; else build the artifact with one that you "
            "trust",
        )

    def _asked(self) -> str:
        return ", ".join(str(key) for key in self.keys) or "a trusted key (there is none yet)"


def describe(keys: Sequence[TrustedKey]) -> str:
    """Keys for a log line: names with short ids, or "none"."""
    return ",".join(f"{item.name}:{short(item.key.key_id)}" for item in keys) or "none"


def _refusal(reason: TrustReason, text: str) -> UntrustedError:
    return UntrustedError(f"[{reason.value}] {text}")
