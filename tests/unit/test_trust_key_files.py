# SPDX-License-Identifier: Apache-2.0
"""Keys in files: who may read them, what counts as one, and what a machine trusts at each moment."""

from __future__ import annotations

import logging
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from dovetail.digest import sha256_hex
from dovetail.errors import AlreadyExistsError, DovetailError, InvalidInputError, NotFoundError
from dovetail.trust.key_files import (
    TrustedKeys,
    public_path,
    read_or_make_signing_key,
    read_public_keys,
    read_signing_key,
    write_public_key,
    write_signing_key,
)
from dovetail.trust.keys import PublicKey, SigningKey
from dovetail.trust.policy import TrustMode

KEY = SigningKey.generate()


def trusted(path: Path) -> list[str]:
    return [item.key.key_id for item in TrustedKeys(TrustMode.SIGNED, path).policy().keys]


def test_a_private_key_is_written_for_its_owner_only_and_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "worker.pem"

    write_signing_key(path, KEY)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert read_signing_key(path).public == KEY.public
    assert [entry.name for entry in path.parent.iterdir()] == ["worker.pem"]


def test_a_key_is_never_written_over(tmp_path: Path) -> None:
    path = tmp_path / "worker.pem"
    write_signing_key(path, KEY)

    with pytest.raises(AlreadyExistsError, match=r"worker\.pem already"):
        write_signing_key(path, SigningKey.generate())

    assert read_signing_key(path).public == KEY.public


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o610, 0o601])
def test_a_key_that_others_may_read_is_refused_with_the_way_to_mend_it(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "worker.pem"
    write_signing_key(path, KEY)
    path.chmod(mode)

    with pytest.raises(InvalidInputError, match=r"chmod 600 worker\.pem") as caught:
        read_signing_key(path)

    assert str(tmp_path) not in str(caught.value)


def test_no_secret_is_in_the_text_of_a_refusal(tmp_path: Path) -> None:
    path = tmp_path / "worker.pem"
    path.write_bytes(KEY.to_pem()[:-40])
    path.chmod(0o600)

    with pytest.raises(InvalidInputError) as caught:
        read_signing_key(path)

    assert KEY.to_pem().splitlines()[1][20:30].decode() not in str(caught.value)
    assert KEY.to_pem().splitlines()[1].decode() not in repr(KEY)


def pem_of(key: object) -> bytes:
    form = serialization
    return key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())  # type: ignore[attr-defined]


OTHERS = {
    "an EC key": pem_of(ec.generate_private_key(ec.SECP256R1())),
    "an RSA key": pem_of(rsa.generate_private_key(65537, 2048)),
    "a public key": KEY.public.to_pem(),
    "a key with a password": ed25519.Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret")
    ),
    "nothing": b"",
    "noise": b"\0\xff" * 100,
    "a large file": b"x" * (1 << 20),
}


@pytest.mark.parametrize("what", OTHERS)
def test_only_an_ed25519_private_key_is_one(tmp_path: Path, what: str) -> None:
    path = tmp_path / "worker.pem"
    path.write_bytes(OTHERS[what])
    path.chmod(0o600)

    with pytest.raises(InvalidInputError, match=r"worker\.pem"):
        read_signing_key(path)


def test_what_is_no_file_or_not_there_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="dovetail keys new"):
        read_signing_key(tmp_path / "worker.pem")
    with pytest.raises(DovetailError):
        read_signing_key(tmp_path)


def test_a_missing_key_is_made_once_with_its_public_half(tmp_path: Path) -> None:
    path = tmp_path / "worker.pem"

    first, made = read_or_make_signing_key(path)
    second, again = read_or_make_signing_key(path)

    assert (made, again) == (True, False)
    assert first.public == second.public
    assert read_public_keys(public_path(path)) == (first.public,)


def test_workers_that_make_the_key_at_once_end_with_the_same(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda _: read_or_make_signing_key(tmp_path / "worker.pem")[0].public, range(8)))

    assert len(set(keys)) == 1


def test_a_keys_id_is_the_digest_of_its_public_form() -> None:
    der = serialization.load_pem_public_key(KEY.public.to_pem()).public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )

    assert KEY.public.key_id == sha256_hex(der)
    assert PublicKey.from_pem(KEY.public.to_pem()) == KEY.public


def test_a_folder_trusts_its_pem_files_and_a_file_all_its_blocks(tmp_path: Path) -> None:
    other = SigningKey.generate()
    write_public_key(tmp_path / "keys" / "a.pem", KEY.public)
    write_public_key(tmp_path / "keys" / "b.pem", other.public)
    write_public_key(tmp_path / "keys" / "ignored.txt", SigningKey.generate().public)
    (tmp_path / "both").write_bytes(KEY.public.to_pem() + b"# a remark\n" + other.public.to_pem())

    both = [KEY.public.key_id, other.public.key_id]
    assert trusted(tmp_path / "keys") == both
    assert trusted(tmp_path / "both") == both
    assert trusted(tmp_path / "keys" / "b.pem") == both[1:]


def test_what_is_trusted_is_what_is_there_now(tmp_path: Path) -> None:
    keys = TrustedKeys(TrustMode.SIGNED, tmp_path)
    assert keys.policy().keys == ()

    write_public_key(tmp_path / "worker.pem", KEY.public)
    (found,) = keys.policy().keys
    assert (found.name, found.key) == ("worker", KEY.public)

    (tmp_path / "worker.pem").unlink()
    assert keys.policy().keys == ()


@pytest.mark.parametrize(
    "content", [b"", b"no key", KEY.to_pem(), KEY.public.to_pem() + pem_of(ec.generate_private_key(ec.SECP256R1()))]
)
def test_a_file_that_is_no_public_key_is_left_out_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    good = SigningKey.generate()
    write_public_key(tmp_path / "good.pem", good.public)
    (tmp_path / "bad.pem").write_bytes(content)

    with caplog.at_level(logging.ERROR):
        assert trusted(tmp_path) == [good.public.key_id]

    assert "trust.key_unreadable file=bad.pem" in caplog.text


def test_nothing_is_trusted_where_there_is_nothing(tmp_path: Path) -> None:
    assert trusted(tmp_path / "missing") == []
    assert TrustedKeys(TrustMode.SIGNED).policy().keys == ()


def test_a_file_name_cannot_forge_a_log_line(tmp_path: Path) -> None:
    write_public_key(tmp_path / "a\nb c=d.pem", KEY.public)

    (found,) = TrustedKeys(TrustMode.SIGNED, tmp_path).policy().keys

    assert found.name == "a?b?c?d"
