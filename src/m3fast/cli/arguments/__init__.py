"""Arguments and help of every command. Imports nothing heavy: --help must be instant."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, NoReturn

from m3fast._version import __version__
from m3fast.cli.arguments import eval, serve, train

if TYPE_CHECKING:
    from collections.abc import Callable

INPUT = """\
input (IN, --corpus):
  .txt      one text per line, empty lines count
  .jsonl    one JSON object per line, blank lines do not count
  .parquet  a column of strings (needs m3fast[parquet])
  -         as .txt, from standard input
Text is UTF-8. Names of columns: --text-column, --id-column. Without --id-column, ids are taken from
a column id if all of it are strings or integers; else it is left out, with a warning."""

ENCODE = f"""\
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

SEARCH = f"""\
{INPUT}

weights: three numbers dense,sparse,colbert, or a name from the M3-Embedding paper: miracl and mkqa
(1,0.3,1), mldr (0.15,0.5,0.35), miracl-dense-sparse (1,0.3,0), mldr-dense-sparse (0.2,0.8,0).

examples:
  m3fast search "What is BGE M3?" --corpus corpus.txt
  m3fast search "first query" "second query" --corpus corpus.jsonl --mode sparse -k 3 --json
  m3fast search "a query" --corpus corpus.txt --vectors corpus.npz --weights mldr"""

SCORE = """\
prints colbert, sparse, dense, sparse+dense and colbert+sparse+dense of each pair, as
FlagEmbedding's compute_score does (a dense-only model: dense).

--pairs: .jsonl with "query" and "passage" in each line, or .tsv with two columns and no header.

examples:
  m3fast score --query "What is BGE M3?" --passage "An embedding model." --passage "A robot."
  m3fast score --pairs pairs.jsonl --json --model BAAI/bge-m3"""

VERIFY = """\
checks, on this machine and its device:
  goldens   scores that FlagEmbedding prints for the genuine BGE-M3 weights (that model only)
  accuracy  each head in float32, bfloat16 and float16 against the same encoder in plain torch and
            float64: the error may be twice that of plain torch in the same dtype
  outliers  largest activations of each layer, and whether float16 can hold them

examples:
  m3fast verify BAAI/bge-m3
  m3fast verify ./my-model --device cpu --json"""

ENV = """\
prints versions, devices, the dtype that --dtype auto takes and why, whether the native extension is
there, and which path each operation takes."""


TUNE = """\
times every config of the GPU kernels at BGE-M3's sizes and writes the best to the table that the
kernels read, kernels/tuned/<device>.json in the installed package. Takes minutes: each config is
compiled. Configs that do not compile or do not fit the GPU are named and left out. With --seconds
the shapes that matter most are tried, in that order, and what time did not suffice for is named.

examples:
  m3fast tune
  m3fast tune --seconds 75
  m3fast tune --op attention --op maxsim --device cuda:1 --output nvidia-h200.json"""


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

    def command(name: str, brief: str, epilog: str, *add: Callable[[Parser], None]) -> None:
        sub = commands.add_parser(
            name,
            help=brief,
            description=f"{brief[0].upper()}{brief[1:]}.",
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        for group in add:
            group(sub)

    command(
        "encode", "encode a file of texts to vectors", ENCODE,
        _encode, _columns, _progress, _engine,
    )  # fmt: skip
    command("search", "rank the texts of a file for queries", SEARCH, _search, _columns, _engine)
    command("score", "score pairs of query and passage", SCORE, _score, _engine)
    command(
        "eval", "measure how well a model retrieves, per language and mode",
        eval.EPILOG, eval.add, _progress, _engine,
    )  # fmt: skip
    command(
        "train", "fine-tune a model on queries and passages",
        train.EPILOG, train.add, _progress,
    )  # fmt: skip
    command("verify", "check a model's results on this machine", VERIFY, _verify)
    command(
        "serve", "answer over HTTP: OpenAI's, TEI's, Cohere's and native routes",
        serve.EPILOG, serve.add,
    )  # fmt: skip
    command("tune", "measure the GPU kernels' configs on this GPU", TUNE, _tune)
    command("env", "show versions, devices and active kernels", ENV, _json)
    return root


def _engine(sub: Parser) -> None:
    group = sub.add_argument_group("model")
    group.add_argument(
        "--model",
        default="m3fast-tiny",
        help="m3fast-tiny, a folder or a hub id such as BAAI/bge-m3 (default: %(default)s)",
    )
    group.add_argument("--device", default="auto", help="auto, cpu or cuda[:n]")
    group.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    group.add_argument(
        "--max-length", type=int, metavar="N", help="most tokens per text (default: the model's)"
    )


def _columns(sub: Parser) -> None:
    group = sub.add_argument_group("columns")
    group.add_argument(
        "--text-column", default="text", metavar="NAME", help="of texts (default: %(default)s)"
    )
    ids = group.add_mutually_exclusive_group()
    ids.add_argument(
        "--id-column",
        metavar="NAME",
        help="of ids, str or int (default: id, where every record has one)",
    )
    ids.add_argument("--no-ids", action="store_true", help="leave ids out")


def _encode(sub: Parser) -> None:
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
        type=_positive,
        default=8192,
        metavar="N",
        help="texts per part file, in steps of about 1,024 (default: %(default)s)",
    )


def _search(sub: Parser) -> None:
    sub.add_argument("queries", metavar="QUERY", nargs="+", help="what to look for")
    sub.add_argument("--corpus", metavar="FILE", required=True, help="the texts to rank")
    sub.add_argument(
        "--vectors", metavar="NPZ", help="the corpus as encoded by m3fast encode: not encoded again"
    )
    sub.add_argument(
        "--mode",
        choices=("dense", "sparse", "colbert", "hybrid"),
        help="what ranks (default: hybrid, or dense for a model without the other heads)",
    )
    sub.add_argument(
        "--weights", default="miracl", metavar="W", help="of hybrid mode (default: %(default)s)"
    )
    sub.add_argument("-k", type=_positive, default=10, help="hits per query (default: %(default)s)")
    _json(sub)


def _score(sub: Parser) -> None:
    sub.add_argument("--query", action="append", default=[], metavar="Q")
    sub.add_argument(
        "--passage",
        action="append",
        default=[],
        metavar="P",
        help="may be repeated; one query goes with all passages, else pair by pair",
    )
    sub.add_argument("--pairs", metavar="FILE", help=".jsonl or .tsv, instead of the two above")
    sub.add_argument(
        "--weights", default="1,1,1", metavar="W", help="dense,sparse,colbert (default: 1,1,1)"
    )
    _json(sub)


def _verify(sub: Parser) -> None:
    sub.add_argument("model", metavar="MODEL", help="m3fast-tiny, a folder or a hub id")
    sub.add_argument("--device", default="auto", help="auto, cpu or cuda[:n]")
    sub.add_argument(
        "--lexical-fixture",
        metavar="FILE",
        help='lexical weights to compare with: {"items": [{"text", "lexical_weights"}, ...]}',
    )
    sub.add_argument(
        "--skip-goldens", action="store_true", help="for a fine-tuned model in BGE-M3's shape"
    )
    _json(sub)


def _tune(sub: Parser) -> None:
    sub.add_argument(
        "--op", action="append", default=[], metavar="OP",
        help="attention, layernorm, gelu, maxsim or sparse; may be repeated (default: all)",
    )  # fmt: skip
    sub.add_argument("--device", default="cuda", help="cuda[:n] (default: %(default)s)")
    sub.add_argument("--output", metavar="FILE", help="table to write, or to add to")
    sub.add_argument("--seconds", type=float, metavar="N",
                     help="end after N, having tried what matters most first")  # fmt: skip


def _progress(sub: Parser) -> None:
    sub.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        help="show a progress bar (default: on a terminal)",
    )


def _json(sub: Parser) -> None:
    sub.add_argument("--json", action="store_true", help="JSON instead of a table")


def _positive(text: str) -> int:
    value = int(text)  # argparse turns a ValueError into its own error line
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, found {value}")
    return value
