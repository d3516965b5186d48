"""Arguments and help of every command. Nothing heavy is imported: --help must be instant."""

from __future__ import annotations

import argparse
from typing import NoReturn

from m3fast._version import __version__
from m3fast.cli.arguments import (
    encode,
    env,
    eval,
    quantize,
    score,
    search,
    serve,
    train,
    tune,
    verify,
)

# As --help lists them; each is named like its module in m3fast.cli.
COMMANDS = (encode, search, score, eval, train, quantize, verify, serve, tune, env)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line that starts like all others."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"m3fast: error: {message} (see {self.prog} --help)\n")


def parser() -> Parser:
    """The parser; `command` in its result names the module in m3fast.cli that runs."""
    root = Parser(
        prog="m3fast",
        description="Dense, sparse and ColBERT vectors of BGE-M3 and other XLM-R encoders.",
        epilog="exit codes: 0 done, 1 a check of verify failed, 2 bad usage or input, "
        "130 interrupted, 141 output pipe closed",
    )
    root.add_argument("--version", action="version", version=f"m3fast {__version__}")
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        sub = commands.add_parser(
            command.__name__.rpartition(".")[2],
            help=command.BRIEF,
            description=f"{command.BRIEF[0].upper()}{command.BRIEF[1:]}.",
            epilog=command.EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.add(sub)
    return root
