"""docs/serving.md: its commands work as they stand, and it names every flag and route."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import servers
from safetensors import safe_open

from m3fast.cli.arguments import parser

TEXT = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = [
    words
    for block in BLOCKS
    for part in re.split(r"\n(?=curl)", block)
    if (words := shlex.split(part, comments=True))[0] == "curl"
]


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_every_command(server, tmp_path):
    assert len(COMMANDS) == 16
    for words in COMMANDS:
        named = [word.replace("localhost:8080", f"127.0.0.1:{server.port}") for word in words]
        found = subprocess.run(
            [*named, "--fail"], cwd=tmp_path, capture_output=True, timeout=servers.PATIENCE
        )
        assert found.returncode == 0, (words, found.stderr)
        if "-o" not in words and not words[-1].endswith("/metrics"):
            assert json.loads(found.stdout), words
    with safe_open(tmp_path / "vectors.safetensors", "np") as file:
        assert {"colbert_values", "colbert_scales", "colbert_offsets"} <= set(file.keys())


def test_every_flag_is_named(capsys):
    with pytest.raises(SystemExit):
        parser().parse_args(["serve", "--help"])
    flags = set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out)) - {"--help"}
    assert flags == set(re.findall(r"--[a-z][a-z-]+", TEXT)) - {"--help"}


def test_every_route_is_named(server):
    for path in server.get("/openapi.json").json()["paths"]:
        assert path.replace("/{model}", "") in TEXT
