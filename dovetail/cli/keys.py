# SPDX-License-Identifier: Apache-2.0
"""`dovetail keys`: make, show and list the keys that artifacts are signed with. Works on files; needs no service."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dovetail.cli.context import JsonFlag

if TYPE_CHECKING:
    from dovetail.trust.keys import PublicKey

app = typer.Typer(
    no_args_is_help=True, help="Keys that workers sign artifacts with, and that nodes trust.", rich_markup_mode=None
)

_PRIVATE = b"PRIVATE KEY"


@app.command("new")
def new(
    path: Annotated[
        Path, typer.Argument(dir_okay=False, metavar="FILE", help="Where the private key is kept; mode 0600.")
    ] = Path("worker.pem"),
    as_json: JsonFlag = False,
) -> None:
    """Make a key pair: FILE for the worker, and beside it FILE's name with .pub.pem for the nodes.

    An existing key is never written over.
    """
    from dovetail.cli.output import say
    from dovetail.trust.key_files import public_path, write_public_key, write_signing_key
    from dovetail.trust.keys import SigningKey

    key = SigningKey.generate()
    write_signing_key(path, key)
    public = public_path(path)
    write_public_key(public, key.public)
    if as_json:
        _print_json({"key_id": key.public.key_id, "private": str(path), "public": str(public)})
        return
    say(f"key {key.public.key_id}")
    say(f"  for the worker, secret   {path}   DOVETAIL_SIGNING_KEY")
    say(f"  for every node           {public}   DOVETAIL_TRUSTED_KEYS, a file or folder")


@app.command("show")
def show(
    path: Annotated[Path, typer.Argument(exists=True, dir_okay=False, metavar="FILE", help="Private or public key.")],
    as_json: JsonFlag = False,
) -> None:
    """Show a key's id and its public half, from either half."""
    keys = _keys_of(path)
    if as_json:
        _print_json([{"key_id": key.key_id, "public_pem": key.to_pem().decode()} for key in keys])
        return
    for key in keys:
        typer.echo(key.key_id)
        typer.echo(key.to_pem().decode(), nl=False)


@app.command("list")
def list_keys(
    path: Annotated[Path, typer.Argument(exists=True, metavar="PATH", help="File or folder of public keys.")],
    as_json: JsonFlag = False,
) -> None:
    """List the keys that a node with DOVETAIL_TRUSTED_KEYS=PATH trusts. Exit code 1: it would trust none."""
    from dovetail.cli.output import data_console
    from dovetail.errors import PreconditionError
    from dovetail.trust.key_files import TrustedKeys
    from dovetail.trust.policy import TrustMode

    keys = TrustedKeys(TrustMode.SIGNED, path).policy().keys
    if as_json:
        _print_json([{"name": item.name, "key_id": item.key.key_id} for item in keys])
    elif keys:
        from rich.table import Table

        table = Table("name", "key id", box=None)
        for item in keys:
            table.add_row(item.name, item.key.key_id)
        data_console().print(table)
    if not keys:
        raise PreconditionError(f"{path.name} has no public key: make one with `dovetail keys new`")


def _keys_of(path: Path) -> tuple[PublicKey, ...]:
    from dovetail.trust.key_files import MAX_KEY_FILE_BYTES, read_public_keys, read_signing_key

    with path.open("rb") as file:
        private = _PRIVATE in file.read(MAX_KEY_FILE_BYTES)
    return (read_signing_key(path).public,) if private else read_public_keys(path)


def _print_json(document: object) -> None:
    from dovetail.cli.output import print_json

    print_json(document)
