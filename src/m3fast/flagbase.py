"""What `BGEM3FlagModel` is apart from its methods: arguments, devices, engines, processes."""

from __future__ import annotations

import warnings
from functools import cached_property
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from m3fast.config import read_json
from m3fast.engine import Engine
from m3fast.errors import InputError
from m3fast.pool import Pool, start_pool, stop_pool

if TYPE_CHECKING:
    from collections.abc import Callable

# The first two are read by the reference's encode_corpus, the last is other wrappers' spelling.
KNOWN_KWARGS = {"passage_instruction_for_retrieval", "passage_instruction_format", "device"}


class FlagBase:
    """See `BGEM3FlagModel`."""

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
        self._engine(self.target_devices[0])  # a broken model fails here, not at the first call

    def __getstate__(self) -> dict[str, Any]:
        # A worker process loads its own weights: sending them would cost more.
        return {**self.__dict__, "_engines": {}, "pool": None, "tokenizer": None, "model": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name in ("tokenizer", "model"):
            state.pop(name)
        self.__dict__.update(state)

    def _engine(self, device: str | None) -> Engine:
        name = device or self.target_devices[0]
        if name not in self._engines:
            on_cpu = name == "cpu"
            half = "float16" if self.use_fp16 and not on_cpu else "float32"
            self._engines[name] = Engine.from_pretrained(
                self.model_name_or_path,
                device=name,
                dtype="bfloat16" if self.use_bf16 else half,
                pooling=self.pooling_method,  # pyright: ignore[reportArgumentType] - checked there
                normalize=self.normalize_embeddings,
                colbert_dim=self.colbert_dim,
                cache_dir=self.cache_dir,
            )
        return self._engines[name]

    @cached_property
    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer as transformers' AutoTokenizer, loaded on first use."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self._engine(None).path)

    @cached_property
    def model(self) -> Any:
        """What others read of the reference's model: `.model.config`, `.colbert_linear`."""
        engine = self._engine(None)
        head = engine.runner.weights.colbert
        config = SimpleNamespace(**read_json(engine.path / "config.json"))
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
        return start_pool(self.target_devices, process_target_func, self)

    @staticmethod
    def stop_multi_process_pool(pool: Pool) -> None:
        """End a pool's processes and queues."""
        stop_pool(pool)

    def stop_self_pool(self) -> None:
        """End the pool that `encode` started, if it did."""
        if self.pool is not None:
            stop_pool(self.pool)
            self.pool = None

    def __del__(self) -> None:
        if getattr(self, "pool", None) is not None:
            self.stop_self_pool()
