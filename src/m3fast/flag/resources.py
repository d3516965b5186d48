"""What a `BGEM3FlagModel` holds: its arguments, an engine per device, worker processes."""

from __future__ import annotations

import threading
import warnings
from functools import cached_property
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self

import torch

from m3fast.checkpoint.files import read_json
from m3fast.checkpoint.folder import again
from m3fast.engine.engine import Engine
from m3fast.errors import EngineClosedError, InputError
from m3fast.flag.pool import Pool
from m3fast.text.files import auto_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable

# The first two are read by the reference's encode_corpus, the third is other wrappers' spelling,
# and the last is our own.
KNOWN_KWARGS = {"passage_instruction_for_retrieval", "passage_instruction_format", "device",
                "dtype"}  # fmt: skip


class Resources:
    """Arguments, engines and processes, from the constructor to `close`; see `BGEM3FlagModel`."""

    def __init__(
        self,
        model_name_or_path: str,
        normalize_embeddings: bool = True,
        use_fp16: bool = True,
        use_bf16: bool = False,
        query_instruction_for_retrieval: str | None = None,
        query_instruction_format: str = "{}{}",
        devices: str | int | list[str] | list[int] | None = None,
        pooling_method: str = "cls",
        trust_remote_code: bool = False,
        cache_dir: str | None = None,
        colbert_dim: int = -1,
        batch_size: int = 256,
        query_max_length: int = 512,
        passage_max_length: int = 512,
        return_dense: bool = True,
        return_sparse: bool = False,
        return_colbert_vecs: bool = False,
        truncate_dim: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.model_name_or_path = model_name_or_path
        self.normalize_embeddings = normalize_embeddings
        self.use_fp16, self.use_bf16 = use_fp16, use_bf16
        self.query_instruction_for_retrieval = query_instruction_for_retrieval
        self.query_instruction_format = query_instruction_format
        self.pooling_method, self.trust_remote_code = pooling_method, trust_remote_code
        self.cache_dir, self.colbert_dim = cache_dir, colbert_dim
        self.batch_size = batch_size
        self.query_max_length, self.passage_max_length = query_max_length, passage_max_length
        self.return_dense, self.return_sparse = return_dense, return_sparse
        self.return_colbert_vecs, self.truncate_dim = return_colbert_vecs, truncate_dim
        if unknown := sorted(set(kwargs) - KNOWN_KWARGS):
            warnings.warn(f"kwargs: {unknown} have no effect", RuntimeWarning, stacklevel=2)
        self.kwargs = kwargs
        for name, value in kwargs.items():
            setattr(self, name, value)
        self.target_devices = self.get_target_devices(
            kwargs.get("device") if devices is None else devices
        )
        self.pool: Pool | None = None
        self._engines: dict[str, Engine] = {}
        self._lock = threading.RLock()  # of engines and pool: calls may come from any thread
        self._closed = False
        self._path = ""
        # A broken model fails here, not at the first call; and a relative path is read here.
        self._path = str(self._engine(self.target_devices[0]).path)

    def __getstate__(self) -> dict[str, Any]:
        # A worker process loads its own weights: sending them would cost more.
        left = ("_engines", "_lock", "pool", "tokenizer", "model")
        return {name: value for name, value in self.__dict__.items() if name not in left}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _engines={}, _lock=threading.RLock(), pool=None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes and free the weights; calls then raise `EngineClosedError`."""
        with self._lock:
            self._closed = True
            self.stop_self_pool()
            for engine in self._engines.values():
                engine.close()
            self._engines.clear()

    def _engine(self, device: str | None) -> Engine:
        name = device or self.target_devices[0]
        with self._lock:
            self._check_open()
            if name not in self._engines:
                on_cpu = name == "cpu"
                half = "float16" if self.use_fp16 and not on_cpu else "float32"
                half = "bfloat16" if self.use_bf16 else half
                model = self.model_name_or_path
                self._engines[name] = Engine.from_pretrained(
                    again(self._path, model) if self._path else model,
                    device=name,
                    dtype=half if (asked := self.kwargs.get("dtype")) is None else asked,
                    pooling=self.pooling_method,  # pyright: ignore[reportArgumentType] - there
                    normalize=self.normalize_embeddings,
                    colbert_dim=self.colbert_dim,
                    cache_dir=self.cache_dir,
                )
            return self._engines[name]

    def _check_open(self) -> None:
        if self._closed:
            raise EngineClosedError("model: it has been closed")

    @cached_property
    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer as transformers' AutoTokenizer, loaded on first use."""
        return auto_tokenizer(self._engine(None).sentence.encoder)

    @cached_property
    def model(self) -> Any:
        """What others read of the reference's model: `.model.config`, `.colbert_linear`."""
        engine = self._engine(None)
        head = engine.runner.weights.colbert
        config = SimpleNamespace(**read_json(engine.sentence.encoder / "config.json"))
        linear = None
        if head is not None:
            rows, cols = head.weight.shape
            linear = SimpleNamespace(out_features=rows, in_features=cols)
        return SimpleNamespace(model=SimpleNamespace(config=config), colbert_linear=linear)

    @staticmethod
    def get_target_devices(devices: str | int | list[str] | list[int] | None) -> list[str]:
        """Device names: all CUDA devices, or the CPU, for None.

        Raises:
            InputError: neither a str, an int, nor a list of them.
        """
        if devices is None:
            return [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["cpu"]
        listed = devices if isinstance(devices, list) else [devices]
        if not listed or not all(isinstance(x, str | int) for x in listed):
            raise InputError(
                f"devices: expected a str, an int or a list of them, found {devices!r}"
            )
        return [x if isinstance(x, str) else f"cuda:{x}" for x in listed]

    def start_multi_process_pool(self, process_target_func: Callable[..., None]) -> Pool:
        """One spawned process per target device, running `process_target_func`."""
        return Pool(self.target_devices, process_target_func, self)

    @staticmethod
    def stop_multi_process_pool(pool: Pool) -> None:
        """End a pool's processes."""
        pool.stop()

    def stop_self_pool(self) -> None:
        """End the pool that `encode` started, if it did."""
        with self._lock:
            if self.pool is not None:
                self.pool.stop()
                self.pool = None


def no_kwargs(kwargs: dict[str, Any]) -> None:
    """InputError naming what is left of keyword arguments."""
    if kwargs:
        raise InputError(f"kwargs: expected no further arguments, found {sorted(kwargs)}")
