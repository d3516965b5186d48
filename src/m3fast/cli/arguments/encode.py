"""Arguments of `m3fast encode`."""

from __future__ import annotations

import argparse

from m3fast.cli.arguments.shared import INPUT, add_columns, add_model, add_progress, positive

BRIEF = "encode a file of texts to vectors"
EPILOG = f"""\
{INPUT}

output, one row per text in input order:
  .npz      dense float32 [N, H]
            sparse_indptr int64 [N + 1], sparse_indices int32, sparse_values float32: CSR rows
            colbert_values [R, D], colbert_offsets int64 [N + 1]: text i owns rows
              offsets[i]:offsets[i + 1], one per token but the first
            n_tokens int32 [N], truncated bool [N]
            ids_values uint8 [B], ids_offsets int64 [N + 1], if the input has ids: id i is the UTF-8
              in bytes offsets[i]:offsets[i + 1]; m3fast.cli.store.read_ids gives a list of str
            meta uint8: JSON in UTF-8 (model, dtype, max_length, vocab_size, texts, m3fast)
  .parquet  columns id (if given), dense list<float>, sparse_indices list<int32>,
            sparse_values list<float>, colbert list<list<float or halffloat>>, n_tokens,
            truncated; meta stands in the file's metadata under the key m3fast

Memory does not grow with the input. Finished parts lie in OUT.parts/: after a kill the same command
goes on where it stopped, and ends with the same file. OUT appears only when it is complete.

examples:
  m3fast encode corpus.txt -o corpus.npz
  m3fast encode corpus.jsonl -o corpus.parquet --model BAAI/bge-m3 --dense --sparse
  zcat corpus.txt.gz | m3fast encode - -o corpus.npz --max-length 512"""


def add(sub: argparse.ArgumentParser) -> None:
    """Add them all."""
    sub.add_argument("input", metavar="IN", help=".txt, .jsonl, .parquet, or - for standard input")
    sub.add_argument(
        "-o", "--output", metavar="OUT", required=True, help=".npz or .parquet file to write"
    )
    sub.add_argument(
        "--overwrite", action="store_true", help="replace OUT, discard parts of another run"
    )
    sub.add_argument(
        "--prompt-name",
        metavar="NAME",
        help="of the model's prompts, which to put before each text; '' for none (default: the "
        "model's own default)",
    )
    group = sub.add_argument_group("outputs (default: all that the model has)")
    group.add_argument("--dense", action="store_true", help="one vector per text")
    group.add_argument("--sparse", action="store_true", help="a weight per token id")
    group.add_argument("--colbert", action="store_true", help="a vector per token: large")
    group.add_argument(
        "--colbert-dtype",
        choices=("float16", "float32"),
        default="float16",
        help="of stored ColBERT vectors (default: %(default)s)",
    )
    sub.add_argument(
        "--part-size",
        type=positive,
        default=8192,
        metavar="N",
        help="texts per part file, in steps of about 1,024 (default: %(default)s)",
    )
    add_columns(sub)
    add_progress(sub)
    add_model(sub)
