"""Settings and the flags of `m3fast serve`."""

import dataclasses
from pathlib import Path

import pytest

from m3fast.cli.arguments import parser
from m3fast.cli.serve import settings_of
from m3fast.errors import InputError
from m3fast.server.settings import Settings


def test_keys_are_not_in_reprs_or_errors():
    settings = Settings(api_keys=("very-secret",))
    assert "very-secret" not in repr(settings)
    for bad in ("a b", "", "x" * 513, "ä", "a\n"):
        with pytest.raises(InputError, match="api_keys") as caught:
            Settings(api_keys=(bad,))
        assert not bad or f"'{bad}'" not in str(caught.value)


def arguments(*flags):
    return parser().parse_args(["serve", *flags])


def test_every_setting_has_a_flag(tmp_path):
    assert settings_of(arguments(), "") == Settings()
    file = tmp_path / "file"
    file.write_text("one\n\n two \none\n")
    flags = {
        "host": ("--host", "0.0.0.0"),
        "port": ("--port", "0"),
        "served_names": ("--served-model-name", "a", "--served-model-name", "b c"),
        "api_keys": ("--api-key-file", str(file)),
        "cors_origins": ("--cors-origin", "*"),
        "tls_cert": ("--tls-cert", str(file), "--tls-key", str(file)),
        "tls_key": ("--tls-cert", str(file), "--tls-key", str(file)),
        "auto_truncate": ("--auto-truncate",),
        "log_format": ("--log-format", "text"),
        "log_level": ("--log-level", "error"),
        "traces": ("--traces",),
    }
    for field in dataclasses.fields(Settings):
        given = flags.get(field.name, (f"--{field.name.replace('_', '-')}", "7"))
        changed = settings_of(arguments(*given), "")
        assert getattr(changed, field.name) != getattr(Settings(), field.name), field.name
    found = settings_of(arguments(*flags["api_keys"]), "env, other,")
    assert found.api_keys == ("env", "other", "one", "two")
    assert settings_of(arguments(*flags["served_names"]), "").served_names == ("a", "b c")


def test_the_models_folder_is_not_shown(tmp_path):
    (tmp_path / "my model").mkdir()
    settings = settings_of(arguments(str(tmp_path / "my model")), "")
    assert settings.served_names == ("my model",)
    assert settings_of(arguments("BAAI/bge-m3"), "").served_names == ("BAAI/bge-m3",)


@pytest.mark.parametrize(
    "wrong",
    [
        {"port": 70000},
        {"port": -1},
        {"host": ""},
        {"timeout": 0.0},
        {"timeout": float("inf")},
        {"timeout": float("nan")},
        {"idle_timeout": -1.0},
        {"max_body": 0},
        {"max_list": True},
        {"max_queue": 1.5},
        {"tokenizer_threads": 0},
        {"served_names": ()},
        {"served_names": ("a\n",)},
        {"cors_origins": ("good.example",)},
        {"tls_cert": Path("x")},
        {"log_format": "xml"},
        {"log_level": "loud"},
    ],
)
def test_wrong_settings(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Settings(**wrong)


def test_wrong_files(tmp_path):
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(InputError, match="api-key-file"):
        settings_of(arguments("--api-key-file", str(tmp_path / "empty")), "")
    with pytest.raises(OSError):
        settings_of(arguments("--api-key-file", str(tmp_path / "none")), "")
    with pytest.raises(InputError, match="--tls-cert"):
        settings_of(arguments("--tls-cert", str(tmp_path / "none")), "")
