"""Check, export, import or compact the ledger.

check adds everything up again and says where the books do not agree; export and import move all
of it, between SQLite and PostgreSQL too; compact folds what is older than some days.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from sqlalchemy.exc import SQLAlchemyError

from meters import transfer
from meters.ledger import Ledger
from proxy import books, tables
from proxy.audit_log import note
from proxy.commands import CommandError
from proxy.commands.keys import seconds
from proxy.commands.progress import progress

EXAMPLE = "joulegate ledger check --config config.yaml"

_YOUNGEST_S = 2 * 86_400.0  # journals may still hold windows of the last hours


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = books.Actions(parser)
    check = actions.add_parser(
        "check", help="add everything up again", example="--config config.yaml"
    )
    check.add_argument("--json", action="store_true", help="print as JSON")
    export = actions.add_parser(
        "export", help="write all of it as JSON Lines", example="--out ledger.jsonl"
    )
    export.add_argument("--out", default="-", metavar="F", help="file; default standard output")
    import_ = actions.add_parser("import", help="bring an export in", example="ledger.jsonl")
    import_.add_argument("file", metavar="F", help="file, or - for standard input")
    compact = actions.add_parser(
        "compact", help="fold hours that are older than some days", example="--older-than 180d"
    )
    compact.add_argument("--older-than", default="90d", metavar="TIME", help="default 90d")


def run(args: argparse.Namespace) -> int:
    settings = books.settings_of(args.config)
    with books.opened(settings) as ledger:
        if args.action == "check":
            return _check(ledger, args.json)
        if args.action == "export":
            _note(ledger, "ledger.export", args.out)
            return _export(ledger, args.out)
        if args.action == "import":
            return _import(ledger, args.file)
        return _compact(ledger, seconds(args.older_than))


def _note(
    ledger: Ledger,
    action: str,
    subject: str,
    detail: Mapping[str, object] | None = None,
    *,
    change: bool = False,
) -> None:
    """Say in the audit log what was done; where that cannot be written, here. A ``change`` is of
    teams or keys: replicas that run are to notice it."""
    try:
        with ledger.database.write() as connection:
            note(connection, books.actor(), action, subject, detail, change=change)
    except SQLAlchemyError as error:
        told = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        print(f"joulegate: this is not in the audit log: {told}", file=sys.stderr)


def _check(ledger: Ledger, as_json: bool) -> int:
    found, own = ledger.check(), ledger.own_energy()
    row = {
        "balanced": found.balanced,
        "requests": found.requests,
        "windows": found.windows,
        "shares": found.shares,
        "metered_j": found.metered_uj / 1e6,
        "attributed_j": found.attributed_uj / 1e6,
        "idle_j": found.idle_uj / 1e6,
        "external_j": found.external_uj / 1e6,
        "unattributed_j": found.unattributed_uj / 1e6,
        "pending_j": found.pending_uj / 1e6,
        "imbalance_uj": found.imbalance_uj,
        "own_j": own.energy_uj / 1e6,  # Joulegate's processes, in no sum above
        "own_metered_j": own.metered_uj / 1e6,
    }
    if as_json:
        tables.show([{**row, "problems": list(found.problems)}], as_json=True)
    else:
        for name, value in row.items():
            print(f"{name:15} {value}")
        for problem in found.problems:
            print(f"joulegate: {problem}", file=sys.stderr)
    return 0 if found.balanced else 1


def _export(ledger: Ledger, out: str) -> int:
    if out == "-":
        for line in _counted(transfer.exported(ledger), "lines written"):
            sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
        return 0
    try:
        with open(out, "xb", opener=_private) as file:
            file.writelines(_counted(transfer.exported(ledger), "lines written"))
    except FileExistsError:
        raise CommandError(f"{out} is there already. Name a new file.") from None
    except OSError as error:
        raise CommandError(f"{out} cannot be written: {error.strerror}.") from None
    return 0


def _import(ledger: Ledger, name: str) -> int:
    try:
        with ExitStack() as stack:
            stdin: IO[bytes] = sys.stdin.buffer
            file = stdin if name == "-" else stack.enter_context(Path(name).open("rb"))
            counts = transfer.imported(ledger, _counted(file, "lines read"))
    except transfer.BadExport as error:
        raise CommandError(str(error)) from None
    except OSError as error:
        raise CommandError(f"{name} cannot be read: {error.strerror}.") from None
    _note(ledger, "ledger.import", name, counts, change=True)
    for table, count in counts.items():
        print(f"{table:15} {count}")
    return _check(ledger, False)


def _compact(ledger: Ledger, older_than_s: float) -> int:
    if older_than_s < _YOUNGEST_S:
        raise CommandError("Hours younger than 2d stay open for late windows. Name 2d or more.")
    before = ledger.database.size_bytes()
    folded = ledger.compact(time.time() - older_than_s)
    after = ledger.database.size_bytes()
    told = {"older_than_s": older_than_s, "windows": folded.windows, "shares": folded.shares}
    _note(ledger, "ledger.compact", "all", told)
    print(
        f"Folded {folded.windows} windows and {folded.shares} shares, forgot {folded.decisions} "
        f"decisions: {before / 1e6:.1f} MB became {after / 1e6:.1f} MB."
    )
    return _check(ledger, False)


def _counted(lines: Iterable[bytes], what: str) -> Iterator[bytes]:
    """The lines, with a word on standard error every two seconds."""
    tell = progress(what)
    for number, line in enumerate(lines, 1):
        tell(number)
        yield line


def _private(path: str, flags: int) -> int:
    """Opens a file that only its owner can read: it holds hashes of keys."""
    return os.open(path, flags, 0o600)
