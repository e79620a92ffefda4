# SPDX-License-Identifier: Apache-2.0
"""Whose artifacts are taken: every way to a refusal, and the one way to a yes."""

from __future__ import annotations

import pytest

from dovetail.errors import UntrustedError
from dovetail.trust.dsse import Envelope, Signature, seal
from dovetail.trust.keys import SigningKey
from dovetail.trust.policy import TrustedKey, TrustMode, TrustPolicy, TrustReason, describe

OLD, NEW, STRANGER = (SigningKey.generate() for _ in range(3))
MANIFEST = b'{"schema":1}'


def policy(*keys: SigningKey, mode: TrustMode = TrustMode.SIGNED) -> TrustPolicy:
    return TrustPolicy(mode, tuple(TrustedKey(f"key-{number}", key.public) for number, key in enumerate(keys)))


def swapped_key_id(envelope: bytes, key: SigningKey) -> bytes:
    sealed = Envelope.from_bytes(envelope)
    signatures = tuple(Signature(key.public.key_id, item.signature) for item in sealed.signatures)
    return Envelope(sealed.payload_type, sealed.payload, signatures).to_bytes()


def test_what_a_trusted_key_signed_is_taken_and_its_signer_told() -> None:
    signer = policy(STRANGER, OLD).check(MANIFEST, seal(MANIFEST, [OLD]), "artifact x")

    assert str(signer) == f"key-1 ({OLD.public.key_id[:16]})"


REFUSALS = {
    TrustReason.UNSIGNED: (policy(OLD), b""),
    TrustReason.NO_KEYS: (policy(), seal(MANIFEST, [OLD])),
    TrustReason.UNREADABLE: (policy(OLD), b"{}"),
    TrustReason.OTHER_TYPE: (policy(OLD), seal(MANIFEST, [OLD], payload_type="application/json")),
    TrustReason.OTHER_PAYLOAD: (policy(OLD), seal(MANIFEST + b" ", [OLD])),
    TrustReason.FOREIGN_KEY: (policy(OLD), seal(MANIFEST, [STRANGER])),
    TrustReason.BAD_SIGNATURE: (policy(OLD), swapped_key_id(seal(MANIFEST, [STRANGER]), OLD)),
}


@pytest.mark.parametrize("reason", TrustReason)
def test_every_other_way_is_a_refusal_that_names_the_artifact_and_the_reason(reason: TrustReason) -> None:
    trust, envelope = REFUSALS[reason]

    with pytest.raises(UntrustedError) as caught:
        trust.check(MANIFEST, envelope, "artifact 0123 of model digits")

    assert str(caught.value).startswith(f"[{reason}] artifact 0123 of model digits ")


@pytest.mark.parametrize("reason", TrustReason)
def test_a_machine_that_takes_any_takes_them_all_but_names_no_signer(reason: TrustReason) -> None:
    trust, envelope = REFUSALS[reason]

    assert TrustPolicy(TrustMode.ANY, trust.keys).check(MANIFEST, envelope, "artifact x") is None


def test_refusals_say_what_was_expected_and_what_to_do() -> None:
    texts = {}
    for reason, (trust, envelope) in REFUSALS.items():
        with pytest.raises(UntrustedError) as caught:
            trust.check(MANIFEST, envelope, "artifact x")
        texts[reason] = str(caught.value)

    assert f"key-0 ({OLD.public.key_id[:16]})" in texts[TrustReason.UNSIGNED]
    assert "DOVETAIL_SIGNING_KEY" in texts[TrustReason.UNSIGNED]
    assert "DOVETAIL_TRUSTED_KEYS" in texts[TrustReason.NO_KEYS]
    assert STRANGER.public.key_id[:16] in texts[TrustReason.FOREIGN_KEY]
    assert OLD.public.key_id[:16] in texts[TrustReason.FOREIGN_KEY]


def test_a_rotation_passes_at_every_step() -> None:
    by_old, by_both, by_new = seal(MANIFEST, [OLD]), seal(MANIFEST, [OLD, NEW]), seal(MANIFEST, [NEW])

    for nodes, envelopes in (
        (policy(OLD), (by_old, by_both)),
        (policy(OLD, NEW), (by_old, by_both, by_new)),
        (policy(NEW), (by_both, by_new)),
    ):
        assert all(nodes.check(MANIFEST, envelope, "artifact x") for envelope in envelopes)
    with pytest.raises(UntrustedError, match=r"^\[foreign-key\]"):
        policy(NEW).check(MANIFEST, by_old, "artifact x")


def test_one_bad_signature_beside_a_good_one_does_no_harm_and_no_good() -> None:
    good, bad = Signature(OLD.public.key_id, b""), Signature(NEW.public.key_id, b"\0" * 64)
    sealed = Envelope.from_bytes(seal(MANIFEST, [OLD]))
    good = sealed.signatures[0]
    both = Envelope(sealed.payload_type, MANIFEST, (bad, good)).to_bytes()

    assert policy(OLD, NEW).check(MANIFEST, both, "artifact x") is not None
    with pytest.raises(UntrustedError, match=r"^\[bad-signature\]"):
        policy(NEW).check(MANIFEST, both, "artifact x")


def test_keys_are_described_for_the_log() -> None:
    assert describe(()) == "none"
    assert describe(policy(OLD).keys) == f"key-0:{OLD.public.key_id[:16]}"
