"""`m3fast serve`: answer over HTTP."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m3fast.errors import InputError
from m3fast.server.settings import Settings

if TYPE_CHECKING:
    from argparse import Namespace

    from m3fast.engine.engine import Engine

KEYS = "M3FAST_API_KEYS"


def run(args: Namespace) -> int:
    """Serve until a signal ends it.

    Raises:
        InputError: a flag, a key or a package is missing or wrong.
        OSError: the file of keys cannot be read.
        CheckpointError: the model is missing or broken.
    """
    settings = settings_of(args, os.environ.get(KEYS, ""))
    try:
        from m3fast.server.run import serve
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name} is not installed: pip install 'm3fast[serve]'") from None

    def load() -> Engine:
        from m3fast.engine.engine import Engine

        devices = args.device.split(",")
        return Engine.from_pretrained(
            args.model,
            device=devices[0] if len(devices) == 1 else devices,
            dtype=args.dtype,
            max_length=args.max_length,
            token_budget=args.token_budget,
        )

    return serve(load, settings)


def settings_of(args: Namespace, keys: str) -> Settings:
    """Settings from the command line.

    Args:
        keys: of the environment, separated by commas.
    """
    found = [key.strip() for key in keys.split(",")]
    if args.api_key_file is not None:
        found += args.api_key_file.read_text(encoding="utf-8").splitlines()
        if not any(found):
            raise InputError(f"--api-key-file: expected a key in {args.api_key_file}, found none")
    special: dict[str, Any] = {
        "served_names": tuple(args.served_model_name) or (_name(args.model),),
        "api_keys": tuple(dict.fromkeys(key.strip() for key in found if key.strip())),
        "cors_origins": tuple(args.cors_origin),
    }
    plain: dict[str, Any] = {each.name: getattr(args, each.name) for each in fields(Settings)
             if each.name not in special}  # fmt: skip
    for name in ("tls_cert", "tls_key"):
        if plain[name] is not None and not plain[name].is_file():
            raise InputError(f"--{name.replace('_', '-')}: expected a file, found {plain[name]}")
    return Settings(**plain, **special)


def _name(model: str) -> str:
    """What a model is called where nobody says: a folder by its own name, not by where it is."""
    return Path(model).resolve().name if Path(model).is_dir() else model
