"""The .npz files of `m3fast encode`: packed strings, earlier versions, other files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import small_folder
from encoderuns import IDS

import m3fast
from m3fast.cli.store import pack_strings, read_ids, read_npz, stored_arrays, unpack_strings
from m3fast.errors import InputError


@pytest.mark.parametrize("strings", [IDS, IDS[::-1], ["", ""], []])
def test_strings_are_packed_by_length(strings: list[str]) -> None:
    values, offsets = pack_strings(strings)
    assert (values.dtype, offsets.dtype, len(offsets)) == (np.uint8, np.int64, len(strings) + 1)
    assert unpack_strings(values, offsets) == strings


def test_files_of_earlier_versions_are_read(tmp_path: Path) -> None:
    """Their ids had one width, in numpy's strings; so had meta."""
    engine = m3fast.Engine.from_pretrained(small_folder())
    found = engine.encode(["one", "two"])
    meta = {"model": "m3fast-tiny", "vocab_size": engine.config.vocab_size}
    arrays: dict[str, Any] = stored_arrays(found, None, "float32")
    arrays |= {"ids": np.array(["a", "long id"]), "meta": np.array(json.dumps(meta))}
    old = tmp_path / "old.npz"
    np.savez(old, **arrays)
    assert read_ids(str(old)) == ["a", "long id"]
    back, back_meta = read_npz(str(old))
    assert back_meta == meta
    assert back.dense is not None and found.dense is not None
    np.testing.assert_array_equal(back.dense, found.dense)
    assert back.sparse is not None and found.sparse is not None
    assert back.sparse.to_dicts() == found.sparse.to_dicts()


@pytest.mark.parametrize("read", [read_ids, read_npz])
def test_reading_what_is_no_output(tmp_path: Path, read: Callable[[str], Any]) -> None:
    no_utf8 = dict(ids_values=np.array([0xFF], np.uint8), ids_offsets=np.array([0, 1]))
    np.savez(tmp_path / "0.npz", **no_utf8)  # pyright: ignore[reportArgumentType]
    np.savez(tmp_path / "1.npz", x=np.zeros(3))
    np.save(tmp_path / "2.npz", np.zeros(3))
    (tmp_path / "2.npz.npy").rename(tmp_path / "2.npz")
    (tmp_path / "3.npz").write_text("no archive")
    (tmp_path / "4.npz").touch()
    for i in range(5):
        with pytest.raises(InputError, match=rf"{i}\.npz: expected an \.npz made by m3fast encode"):
            read(str(tmp_path / f"{i}.npz"))
