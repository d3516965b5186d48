"""The folder OUT.parts/ of an encode run, from which a killed run goes on where it stopped.

    manifest.json    what the parts were made from and how
    000000.npz ...   parts in order, each renamed into place when it is complete
    lock             held by the run that writes
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from m3fast.cli.store import array_shape
from m3fast.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Generator

    from numpy.typing import NDArray


class Parts:
    """The folder of one output file. Use `Parts.opened`.

    Attributes:
        files: complete parts, in order; n_texts: texts in them.
        keep: whether parts outlive a failure, to be resumed from.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.folder = output.with_name(output.name + ".parts")
        self.files: list[Path] = []
        self.n_texts = 0
        self.keep = True

    @classmethod
    @contextmanager
    def opened(cls, output: Path) -> Generator[Parts]:
        """Make and lock the folder; leave it behind only if it holds parts to resume from.

        Raises:
            InputError: another run holds it.
            OSError: it cannot be made or written.
        """
        parts = cls(output)
        parts.folder.mkdir(exist_ok=True)
        with ExitStack() as stack:
            stack.callback(parts._sweep)
            lock = stack.enter_context(open(parts.folder / "lock", "w"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                stack.pop_all()  # what lies there belongs to the other run
                raise InputError(f"output: another run is writing {parts.folder}") from error
            yield parts

    def resume(self, manifest: dict[str, Any], *, discard: bool) -> None:
        """Take over parts left by a run with the same manifest.

        Args:
            manifest: what the parts are made from and how, as JSON would give it back.
            discard: start anew where it differs, instead of raising.

        Raises:
            InputError: the parts there were made in another way; names what differs.
        """
        file = self.folder / "manifest.json"
        found = _read(file)
        if differing := sorted(k for k in manifest | found if manifest.get(k) != found.get(k)):
            if found and not discard:
                changes = ", ".join(
                    f"{k} was {found.get(k)!r:.100} and is {manifest.get(k)!r:.100}"
                    for k in differing
                )
                raise InputError(
                    f"output: {self.folder} holds parts of another run ({changes}); "
                    "repeat that one, remove the folder, or pass --overwrite"
                )
            for old in self.folder.glob("*.npz"):
                old.unlink()
            with self._written(file) as out:
                out.write(json.dumps(manifest, indent=1).encode())
        while (part := self._part(len(self.files))).exists():
            self.files.append(part)
            self.n_texts += array_shape(part, "n_tokens")[0]

    def save(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Write the next part."""
        part = self._part(len(self.files))
        with self._written(part) as out:
            np.savez(out, **arrays)  # pyright: ignore[reportArgumentType] - no name is allow_pickle
        self.files.append(part)
        self.n_texts += len(arrays["n_tokens"])

    @contextmanager
    def finished(self) -> Generator[IO[bytes]]:
        """A file to write the output into; it takes the output's place when the block ends."""
        with self._written(self.output) as out:
            yield out
        self.keep = False

    @contextmanager
    def _written(self, target: Path) -> Generator[IO[bytes]]:
        unfinished = self.folder / "unfinished.tmp"
        with open(unfinished, "wb") as out:
            yield out
            out.flush()
            # Without this a machine that loses power may keep the name and lose the bytes.
            os.fsync(out.fileno())
        os.replace(unfinished, target)

    def _part(self, number: int) -> Path:
        return self.folder / f"{number:06d}.npz"

    def _sweep(self) -> None:
        (self.folder / "unfinished.tmp").unlink(missing_ok=True)
        if not self.keep or not self._part(0).exists():
            shutil.rmtree(self.folder, ignore_errors=True)


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        return {"manifest": "unreadable"}
    return found if isinstance(found, dict) else {"manifest": "unreadable"}
