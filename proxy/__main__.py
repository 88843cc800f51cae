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
    argv = sys.argv[1:] if argv is None else argv
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
            help=command.__doc__.strip().splitlines()[0],
            description=command.__doc__.strip(),
            epilog=f"example: {command.EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(sub)
        sub.set_defaults(run=command.run)
    args = parser.parse_args(argv)
    try:
        return int(args.run(args))
    except (CommandError, BadLine) as error:
        print(f"joulegate: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
