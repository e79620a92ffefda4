# SPDX-License-Identifier: Apache-2.0
"""Signed envelopes (DSSE v1): what is signed, and the JSON form that carries it with its signatures.

Who is trusted is `policy`'s business. Reading is strict where the specification leaves room: base64 has one spelling
for each content, no name occurs twice in an object, and everything has a limit. Nothing here knows what a payload is.

Source: DSSE specification v1.0.2 (secure-systems-lab/dsse: protocol.md, envelope.md).
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dovetail.artifact import MAX_MANIFEST_BYTES
from dovetail.digest import canonical_json
from dovetail.errors import InvalidInputError
from dovetail.trust.keys import SigningKey

MANIFEST_TYPE = "application/vnd.dovetail.manifest+json"
"""Payload type of a manifest: a signature of it is one of nothing else."""

MAX_SIGNATURES = 16
"""More keys than any rotation needs at once; each costs the reader a check."""

MAX_ENVELOPE_BYTES = MAX_MANIFEST_BYTES * 4 // 3 + MAX_SIGNATURES * 1024 + 1024
"""The largest manifest in base64 and as many signatures as are read."""

_MAX_KEY_ID_CHARS = 256
_MAX_SIGNATURE_BYTES = 512


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature.

    Attributes:
        key_id: Says which key to try; it is not signed, so it proves nothing.
        signature: Its bytes.
    """

    key_id: str
    signature: bytes


@dataclass(frozen=True, slots=True)
class Envelope:
    """A payload with its signatures.

    Attributes:
        payload_type: What the payload is.
        payload: What is signed, byte for byte.
        signatures: At least one.
    """

    payload_type: str
    payload: bytes
    signatures: tuple[Signature, ...]

    def signed_bytes(self) -> bytes:
        """What the signatures are made of."""
        return pae(self.payload_type, self.payload)

    def to_bytes(self) -> bytes:
        """The JSON form; `Envelope.from_bytes(e.to_bytes()) == e`."""
        return canonical_json(
            {
                "payload": base64.b64encode(self.payload).decode(),
                "payloadType": self.payload_type,
                "signatures": [
                    {"keyid": item.key_id, "sig": base64.b64encode(item.signature).decode()} for item in self.signatures
                ],
            }
        )

    @staticmethod
    def from_bytes(data: bytes) -> Envelope:
        """Read the JSON form. Names that the specification does not know are passed over, as it says.

        Raises:
            InvalidInputError: Too large, not JSON, something is missing or of another kind, or there is no signature.
        """
        if len(data) > MAX_ENVELOPE_BYTES:
            raise InvalidInputError(f"the envelope has {len(data)} bytes, at most {MAX_ENVELOPE_BYTES} are read")
        try:
            document = json.loads(data.decode("utf-8"), object_pairs_hook=_object)
        except (ValueError, RecursionError) as exc:
            raise InvalidInputError("the envelope is not JSON") from exc
        if not isinstance(document, dict):
            raise InvalidInputError("the envelope is not a JSON object")
        listed = document.get("signatures")
        if not isinstance(listed, list) or not 1 <= len(listed) <= MAX_SIGNATURES:
            raise InvalidInputError(f"the envelope must have 1 to {MAX_SIGNATURES} signatures")
        return Envelope(
            _text(document, "payloadType"),
            _decoded(_text(document, "payload"), "payload"),
            tuple(_signature(item) for item in listed),
        )


def pae(payload_type: str, payload: bytes) -> bytes:
    """Pre-authentication encoding: type and payload with their lengths, so that neither can pass for the other.

    Source: protocol.md, "Signature Definition".
    """
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def seal(payload: bytes, keys: Sequence[SigningKey], *, payload_type: str = MANIFEST_TYPE) -> bytes:
    """An envelope with a signature by each of the keys, in its JSON form.

    Raises:
        InvalidInputError: No key, or too many.
    """
    if not 1 <= len(keys) <= MAX_SIGNATURES:
        raise InvalidInputError(f"an envelope is signed with 1 to {MAX_SIGNATURES} keys, not with {len(keys)}")
    message = pae(payload_type, payload)
    signatures = tuple(Signature(key.public.key_id, key.sign(message)) for key in keys)
    return Envelope(payload_type, payload, signatures).to_bytes()


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _signature(item: object) -> Signature:
    if not isinstance(item, dict):
        raise InvalidInputError("a signature of the envelope is not a JSON object")
    key_id = _text(item, "keyid")
    if not key_id or len(key_id) > _MAX_KEY_ID_CHARS:
        raise InvalidInputError(f"a signature's key id must have 1 to {_MAX_KEY_ID_CHARS} characters")
    signature = _decoded(_text(item, "sig"), "signature")
    if not signature or len(signature) > _MAX_SIGNATURE_BYTES:
        raise InvalidInputError(f"a signature must have 1 to {_MAX_SIGNATURE_BYTES} bytes")
    return Signature(key_id, signature)


def _text(document: Mapping[str, Any], name: str) -> str:
    value = document.get(name)
    if not isinstance(value, str) or not _is_unicode(value):
        raise InvalidInputError(f"the envelope has no text {name!r}")
    return value


def _is_unicode(text: str) -> bool:
    """False for half characters, which JSON's escapes can spell and no encoding can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _decoded(text: str, what: str) -> bytes:
    """Base64, standard or URL-safe, of which only the one spelling that an encoder writes is read."""
    try:
        plain = text.encode("ascii")
        data = base64.b64decode(plain, altchars=b"-_" if b"-" in plain or b"_" in plain else None, validate=True)
    except (ValueError, binascii.Error) as exc:
        raise InvalidInputError(f"the envelope's {what} is not base64") from exc
    if plain not in (base64.b64encode(data), base64.urlsafe_b64encode(data)):
        raise InvalidInputError(f"the envelope's {what} is not base64 as an encoder writes it")
    return data
