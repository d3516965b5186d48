"""infinity-emb as a peer: it needs numpy 1 and transformers 4, so it has a venv and a process of
its own. `make bench-peers` installs it into .venv-infinity.

It has dense vectors only. Its torch engine is used: SDPA, padded batches of texts that it sorts by
length itself, float32. Its ONNX engine needs an exported model and is not compared.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from bench.core import child
from bench.core.measure import Absent
from bench.core.paths import ROOT
from bench.core.workloads import CACHE

PYTHON = ROOT / ".venv-infinity" / "bin" / "python"
PACKAGES = ("infinity-emb", "torch", "sentence-transformers", "transformers", "uvicorn")
MODULES = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))


def folder(path: Path) -> Path:
    """A folder of links to a checkpoint's files and of what sentence-transformers wants besides.

    BGE-M3's own files say the same: the vector of <s>, normalised.
    """
    path = path.resolve()
    where = CACHE / f"linked-{path.name}"
    if (where / "config.json").exists() and (where / "config.json").resolve().parent == path:
        return where
    shutil.rmtree(where, ignore_errors=True)
    CACHE.mkdir(exist_ok=True)
    making = Path(tempfile.mkdtemp(dir=CACHE))
    for file in path.iterdir():
        # ONNX Runtime refuses weights that a link leads away from their graph.
        if file.is_file() and not file.name.startswith("model-"):
            (making / file.name).symlink_to(file.resolve())
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    pooling = {"word_embedding_dimension": config["hidden_size"], "pooling_mode_cls_token": True,
               "pooling_mode_mean_tokens": False}  # fmt: skip
    modules = [
        {"idx": i, "name": str(i), "path": at, "type": f"sentence_transformers.models.{kind}"}
        for i, (at, kind) in enumerate(MODULES)
    ]
    longest = {"max_seq_length": config["max_position_embeddings"] - 2, "do_lower_case": False}
    for at, _ in MODULES[1:]:
        (making / at).mkdir()
    for name, value in (
        ("modules.json", modules),
        ("1_Pooling/config.json", pooling),
        ("sentence_bert_config.json", longest),
    ):
        (making / name).unlink(missing_ok=True)
        (making / name).write_text(json.dumps(value))
    os.replace(making, where)
    return where


def versions() -> str:
    """Of what its venv holds, in words."""
    where = [str(path) for path in PYTHON.parents[1].glob("lib/*/site-packages")]
    found = {d.name: d.version for d in importlib.metadata.distributions(path=where)}
    kept = [name for name in PACKAGES if name.replace("-", "_") in found or name in found]
    return ", ".join(f"{n} {found.get(n) or found[n.replace('-', '_')]}" for n in kept)


class Infinity:
    """A running engine: `encode` returns dense vectors, `took` is the engine's own time for it.

    Raises:
        Absent: it is not installed.
        RuntimeError: it stopped, with its last words.
    """

    def __init__(self, path: Path, batch_size: int, threads: int) -> None:
        if not PYTHON.exists():
            raise Absent("not installed: make bench-peers")
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {
            "OMP_NUM_THREADS": str(threads),
            "HF_HUB_OFFLINE": "1",
            "DO_NOT_TRACK": "1",
        }
        script = str(Path(__file__).with_name("child_infinity.py"))
        self._talk = child.Talk(
            [str(PYTHON), "-P", script, str(folder(path)), str(batch_size), str(threads)],
            environment,
        )
        self.versions: dict[str, str] = self._talk.hello["versions"]
        self.took = 0.0

    def encode(self, texts: list[str]) -> dict[str, Any]:
        answer = self._talk.ask({"texts": texts})
        self.took = answer["seconds"]
        return {"dense_vecs": child.unpack(answer["vectors"])}

    def close(self) -> None:
        self._talk.close()
