# SPDX-License-Identifier: Apache-2.0
"""`dovetail store stats|verify|gc|rebuild|quota`: looking after what is stored."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from dovetail.cli.context import ErrorGroup, JsonFlag, connected
from dovetail.cli.exit_codes import ExitCode
from dovetail.cli.sizes import parse_part, parse_size

if TYPE_CHECKING:
    from dovetail.client import CollectReport, RebuildIndexReport, StoreStats, TenantUsage, VerifyReport


def make_store() -> typer.Typer:
    """The group of commands about the store."""
    group = typer.Typer(
        cls=ErrorGroup, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None,
        help="Look after what is stored: figures, checking, collecting, quotas.",
    )  # fmt: skip
    group.command("stats")(stats)
    group.command("verify")(verify)
    group.command("gc")(gc)
    group.command("rebuild")(rebuild)
    group.command("quota")(quota)
    return group


def stats(ctx: typer.Context, as_json: JsonFlag = False) -> None:
    """Show what is stored: chunks by tier, what nobody needs, what models and tenants take."""
    from dovetail.cli.output import print_json
    from dovetail.cli.store_progress import StoreBar

    with connected(ctx) as client, StoreBar("reading the store") as bar:
        found = client.store_stats(bar.update)
    if as_json:
        print_json({**asdict(found), "documents": dict(found.documents)})
    else:
        _show_stats(found)


def verify(
    ctx: typer.Context,
    sample: Annotated[
        float | None,
        typer.Option(parser=parse_part, metavar="PART", help="Read only so much, chosen at random, such as 5%."),
    ] = None,
    after: Annotated[
        str, typer.Option(metavar="DIGEST", help="Go on after this chunk, as an interrupted run said.")
    ] = "",
    rate: Annotated[
        int | None,
        typer.Option(parser=parse_size, metavar="SIZE", help="Bytes read in a second at most; default: the service's."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Read and hash what is stored, and put right what can be.

    Ends with 1 if something is lost, and says whose it is and what to do.
    """
    from dovetail.cli.output import print_json, say
    from dovetail.cli.store_progress import StoreBar

    with connected(ctx) as client, StoreBar("verifying") as bar:
        try:
            found = client.verify_store(
                sample=sample or 1.0, after=after, bytes_per_s=float(rate or 0), on_progress=bar.update
            )
        except KeyboardInterrupt:
            if bar.position and not sample:
                say(f"to go on later: dovetail store verify --after {bar.position}")
            raise
    if as_json:
        print_json(asdict(found))
    else:
        _show_verify(found)
    if found.lost:
        raise typer.Exit(ExitCode.FAILED)


def gc(
    ctx: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Take away chunks that no model or artifact needs, after their grace; the service also does it by itself.

    What goes is in the trash for one more grace, where whoever asks for it finds it.
    """
    from dovetail.cli.output import print_json
    from dovetail.cli.store_progress import StoreBar

    with connected(ctx) as client, StoreBar("looking for what would go" if dry_run else "collecting") as bar:
        report = client.collect_store(dry_run=dry_run, on_progress=bar.update)
    if as_json:
        print_json(asdict(report))
    else:
        _show_collect(report)


def rebuild(ctx: typer.Context, as_json: JsonFlag = False) -> None:
    """Read the durable tier into the index again, and count anew what tenants use.

    Changes nothing that is there. Ends with 1 if a document cannot be read, or the index knows one that is gone.
    """
    from dovetail.cli.output import print_json
    from dovetail.cli.store_progress import StoreBar

    with connected(ctx) as client, StoreBar("rebuilding the index") as bar:
        report = client.rebuild_index(bar.update)
    if as_json:
        print_json(asdict(report))
    else:
        _show_rebuild(report)
    if report.unreadable or report.only_in_index:
        raise typer.Exit(ExitCode.FAILED)


def quota(
    ctx: typer.Context,
    tenant: Annotated[str, typer.Argument(help="Only this tenant.", metavar="[TENANT]")] = "",
    limit: Annotated[
        int | None,
        typer.Argument(parser=parse_size, help="Its new limit, such as 10GB; 0: none.", metavar="[SIZE]"),
    ] = None,
    default: Annotated[bool, typer.Option("--default", help="Take its own limit away.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Show what tenants use and may use, or change the limit of one.

    The limit of tenants without one of their own is DOVETAIL_QUOTA_BYTES of the services and workers.
    """
    from dovetail.cli.output import data_console, print_json, say
    from dovetail.cli.store_view import tenant_table

    if (limit is not None or default) and not tenant:
        raise typer.BadParameter("name the tenant whose limit is to change")
    if limit is not None and default:
        raise typer.BadParameter("give a SIZE or --default, not both")
    with connected(ctx) as client:
        found: tuple[TenantUsage, ...]
        if limit is not None or default:
            found = (client.set_quota(tenant, limit),)
        else:
            found = tuple(item for item in client.quotas() if tenant in ("", item.tenant))
    if as_json:
        print_json([asdict(item) for item in found])
    elif not found:
        say(f"tenant {tenant} stores nothing" if tenant else "nothing is stored yet: dovetail push NAME MODEL.onnx")
    else:
        data_console().print(tenant_table(found))


def _show_stats(found: StoreStats) -> None:
    from dovetail.cli.output import data_console, say
    from dovetail.cli.store_view import gain_lines, model_table, tenant_table, tier_table

    console = data_console()
    console.print(tier_table(found))
    for line in gain_lines(found):
        console.print(line, markup=False, soft_wrap=True)
    if found.models:
        console.print()
        console.print(model_table(found))
    if found.tenants:
        console.print()
        console.print(tenant_table(found.tenants))
    if found.unreadable_documents:
        say(f"{len(found.unreadable_documents)} documents cannot be read: dovetail store verify")


def _show_verify(found: VerifyReport) -> None:
    from dovetail.cli.output import data_console, say, size_text
    from dovetail.cli.store_view import damage_table

    if found.damages:
        data_console().print(damage_table(found.damages))
    state = "nothing is lost" if not found.lost else f"{found.lost} lost"
    say(
        f"{found.chunks} chunks ({size_text(found.bytes)}) and {found.documents} documents read; "
        f"{found.healed} put right, {state}"
    )


def _show_collect(report: CollectReport) -> None:
    from dovetail.cli.output import age_text, data_console, say
    from dovetail.cli.store_view import collect_table

    data_console().print(collect_table(report))
    grace = age_text(round(report.grace_s * 1000))
    retired = f"{report.retired_dropped} retired artifacts dropped, {report.retired_kept} kept"
    say(f"grace: {grace} (DOVETAIL_GC_GRACE_S); {retired}; took {report.took_s:.1f} s")


def _show_rebuild(report: RebuildIndexReport) -> None:
    from dovetail.cli.output import say

    for key in report.unreadable:
        say(f"left out, cannot be read: {key}")
    for key in report.only_in_index:
        say(f"in the index only, its document is gone: {key}")
    say(f"{report.documents} documents read in {report.took_s:.1f} s, {report.restored} records put into the index")
    if report.unreadable:
        say("dovetail store verify puts documents right that the index still has, or moves them aside")
