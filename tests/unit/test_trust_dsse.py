# SPDX-License-Identifier: Apache-2.0
"""Envelopes: the specification's own vector, the JSON form, and that no changed bit passes."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovetail.digest import canonical_json
from dovetail.errors import DovetailError, InvalidInputError, UntrustedError
from dovetail.trust.dsse import MAX_ENVELOPE_BYTES, MAX_SIGNATURES, Envelope, Signature, pae, seal
from dovetail.trust.keys import PublicKey, SigningKey
from dovetail.trust.policy import TrustedKey, TrustMode, TrustPolicy

KEY = SigningKey.generate()
MANIFEST = b'{"artifact_key":"00","schema":1}'
SEALED = seal(MANIFEST, [KEY])
POLICY = TrustPolicy(TrustMode.SIGNED, (TrustedKey("worker", KEY.public),))


def test_the_specifications_vector_is_encoded_as_it_says() -> None:
    # protocol.md of DSSE v1.0.2, "Test Vectors"
    assert pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_lengths_are_those_of_bytes_and_empty_parts_count() -> None:
    assert pae("", b"") == b"DSSEv1 0  0 "
    assert pae("\u00e4", b"\n ") == b"DSSEv1 2 \xc3\xa4 2 \n "


@given(st.text(max_size=20), st.binary(max_size=40), st.text(max_size=20), st.binary(max_size=40))
def test_two_messages_never_encode_alike(kind: str, payload: bytes, other_kind: str, other: bytes) -> None:
    kinds = [text.encode("utf-8", "replace").decode() for text in (kind, other_kind)]

    assert (pae(kinds[0], payload) == pae(kinds[1], other)) == ((kinds[0], payload) == (kinds[1], other))


SIGNATURES = st.lists(
    st.tuples(st.text("abcdef0123456789", min_size=1, max_size=64), st.binary(min_size=1, max_size=64)),
    min_size=1,
    max_size=4,
)


@given(st.binary(max_size=200), SIGNATURES)
def test_an_envelope_reads_as_it_was_written(payload: bytes, signatures: list[tuple[str, bytes]]) -> None:
    envelope = Envelope("kind", payload, tuple(Signature(*pair) for pair in signatures))

    assert Envelope.from_bytes(envelope.to_bytes()) == envelope


def test_url_safe_base64_and_unknown_names_are_read_as_the_specification_says() -> None:
    document = json.loads(seal(b"\xfb\xff\xfe???", [KEY]))
    document["payload"] = base64.urlsafe_b64encode(b"\xfb\xff\xfe???").decode()
    document["extension"] = {"of": "somebody"}

    assert Envelope.from_bytes(canonical_json(document)).payload == b"\xfb\xff\xfe???"


def test_no_envelope_with_a_flipped_bit_passes() -> None:
    for place in range(8 * len(SEALED)):
        changed = bytearray(SEALED)
        changed[place // 8] ^= 1 << place % 8
        with pytest.raises(UntrustedError):
            POLICY.check(MANIFEST, bytes(changed), "artifact x")


@given(st.integers(0, 8 * len(MANIFEST) - 1))
def test_no_manifest_with_a_flipped_bit_passes(place: int) -> None:
    changed = bytearray(MANIFEST)
    changed[place // 8] ^= 1 << place % 8

    with pytest.raises(UntrustedError, match=r"^\[other-payload\]"):
        POLICY.check(bytes(changed), SEALED, "artifact x")


@given(st.integers(0, 8 * 64 - 1))
def test_no_signature_with_a_flipped_bit_verifies(place: int) -> None:
    signature = bytearray(KEY.sign(b"message"))
    signature[place // 8] ^= 1 << place % 8

    assert not KEY.public.verify(bytes(signature), b"message")


@given(st.binary(max_size=400))
def test_no_bytes_from_outside_end_in_anything_but_a_refusal(data: bytes) -> None:
    with pytest.raises(UntrustedError):
        POLICY.check(MANIFEST, data, "artifact x")


def changed(**fields: object) -> bytes:
    document = {**json.loads(SEALED), **fields}
    return canonical_json({name: value for name, value in document.items() if value is not ...})


GOOD = json.loads(SEALED)["signatures"][0]
BAD_ENVELOPES = {
    "not JSON": b"{",
    "not UTF-8": b"\xff\xfe",
    "no object": b"[]",
    "a number": b"1",
    "deep": b"[" * 100_000,
    "no payload": changed(payload=...),
    "no type": changed(payloadType=...),
    "no signatures": changed(signatures=...),
    "an empty list of signatures": changed(signatures=[]),
    "signatures that are no list": changed(signatures={"0": GOOD}),
    "a signature that is no object": changed(signatures=["x"]),
    "a signature without a key id": changed(signatures=[{"sig": GOOD["sig"]}]),
    "an empty key id": changed(signatures=[{**GOOD, "keyid": ""}]),
    "a long key id": changed(signatures=[{**GOOD, "keyid": "a" * 1000}]),
    "a signature without bytes": changed(signatures=[{**GOOD, "sig": ""}]),
    "a signature of a kilobyte": changed(signatures=[{**GOOD, "sig": base64.b64encode(b"x" * 1024).decode()}]),
    "too many signatures": changed(signatures=[GOOD] * (MAX_SIGNATURES + 1)),
    "a payload that is no text": changed(payload=1),
    "a payload that is no base64": changed(payload="*"),
    "base64 with a line break": changed(payload=json.loads(SEALED)["payload"] + "\n"),
    "base64 without its padding": changed(payload="QQ"),
    "base64 with stray last bits": changed(payload="QR=="),
    "a name that occurs twice": SEALED[:-1] + b',"payload":"QQ=="}',
    "too large": b'{"payload":"' + b"A" * MAX_ENVELOPE_BYTES + b'"}',
}


@pytest.mark.parametrize("why", BAD_ENVELOPES)
def test_what_is_no_envelope_is_refused(why: str) -> None:
    with pytest.raises(InvalidInputError):
        Envelope.from_bytes(BAD_ENVELOPES[why])
    with pytest.raises(UntrustedError, match=r"^\[unreadable-envelope\]"):
        POLICY.check(MANIFEST, BAD_ENVELOPES[why], "artifact x")


def test_nothing_is_signed_without_a_key_or_with_too_many() -> None:
    for keys in ([], [KEY] * (MAX_SIGNATURES + 1)):
        with pytest.raises(InvalidInputError):
            seal(MANIFEST, keys)


def test_a_signature_of_something_else_that_the_same_key_made_does_not_count() -> None:
    plain = Envelope(
        Envelope.from_bytes(SEALED).payload_type, MANIFEST, (Signature(KEY.public.key_id, KEY.sign(MANIFEST)),)
    )

    with pytest.raises(UntrustedError, match=r"^\[bad-signature\]"):
        POLICY.check(MANIFEST, plain.to_bytes(), "artifact x")


def test_a_public_key_refuses_whatever_is_no_signature() -> None:
    assert KEY.public.verify(KEY.sign(b"m"), b"m")
    for signature in (b"", b"\0" * 64, b"\0" * 63, b"\xff" * 65, KEY.sign(b"m")[:-1]):
        assert not KEY.public.verify(signature, b"m")
    assert not SigningKey.generate().public.verify(KEY.sign(b"m"), b"m")


@pytest.mark.parametrize("raw", [b"", b"\0" * 31, b"\0" * 33])
def test_a_public_key_has_32_bytes(raw: bytes) -> None:
    with pytest.raises(DovetailError):
        PublicKey(raw)
