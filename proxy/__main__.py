"""The command line: ``joulegate COMMAND`` or ``python -m proxy COMMAND``."""

from __future__ import annotations

import argparse
import os
import sys

from proxy import __version__
from proxy.commands import COMMANDS, CommandError, load
from proxy.jsonl import BadLine


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit status: 0 done, 1 could not, 2 wrong usage."""
    try:
        try:
            return _run(sys.argv[1:] if argv is None else argv)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # at the interpreter's end nobody could say what was wrong
    except (CommandError, BadLine) as error:
        print(f"joulegate: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        _let_go_of_stdout()
        return 1
    except OSError as error:
        if error.filename is None:
            _let_go_of_stdout()
        where = "what is printed" if error.filename is None else error.filename
        print(f"joulegate: {where} cannot be written or read: {error.strerror}.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("joulegate: stopped.", file=sys.stderr)
        return 130


def _let_go_of_stdout() -> None:
    """What is left in its buffer goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="joulegate", description="An OpenAI-compatible proxy that knows what answers cost."
    )
    parser.add_argument("--version", action="version", version=f"joulegate {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    named = argv[0] if argv and argv[0] in COMMANDS else None
    for name in COMMANDS:
        if named is not None and name != named:
            commands.add_parser(name)
            continue
        command = load(name)
        sub = commands.add_parser(
            name,
            help=command.__doc__.strip().splitlines()[0].replace("%", "%%"),
            description=command.__doc__.strip(),
            epilog=f"example: {command.EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(sub)
        sub.set_defaults(run=command.run)
    args = parser.parse_args(argv)
    return int(args.run(args))


if __name__ == "__main__":
    sys.exit(main())
