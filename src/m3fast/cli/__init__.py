"""The command `m3fast`: encode, search, score, serve, eval, train, quantize, verify, tune,
env.

Exit codes: 0 done; 1 a check of `verify` failed; 2 bad usage or input, with one line on stderr;
130 interrupted; 141 the reader of our output went away.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from typing import TYPE_CHECKING, Any

from m3fast.cli.arguments import parser
from m3fast.errors import M3FastError

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Raises:
        SystemExit: after --help and --version (0) and on a usage error (2), as argparse does.
    """
    args = parser().parse_args(argv)
    args.argv = list(sys.argv[1:] if argv is None else argv)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            # A command's module brings torch, which takes seconds: not before usage is right.
            code: int = importlib.import_module(f"m3fast.cli.{args.command}").run(args)
            sys.stdout.flush()
            return code
        except KeyboardInterrupt:
            return _fail("interrupted", 130)
        except BrokenPipeError:
            # What is still buffered has no reader: Python's flush at exit must not fail on it.
            _silence_stdout()
            return 141
        except (M3FastError, OSError) as error:
            return _fail(str(error), 2)


def _fail(reason: str, code: int) -> int:
    line = " ".join(reason.split())
    print(f"m3fast: error: {line}", file=sys.stderr)
    return code


def _silence_stdout() -> None:
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):  # a replaced stdout has no descriptor
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"m3fast: warning: {message}", file=sys.stderr)
