"""Generates the protobuf modules at build time: one set for protobuf 4, 6 and 7.

protoc 3.21 is required because its output runs with every later runtime, while newer ones check
the runtime's version on import (what Debian 12 ships is 3.21.12).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PROTOC_VERSION = "3.21"


def _protoc() -> str:
    path = os.environ.get("PROTOC") or shutil.which("protoc")
    if not path:
        raise RuntimeError(
            f"protoc {PROTOC_VERSION} is missing: apt-get install protobuf-compiler, or name it "
            "with PROTOC=PATH"
        )
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"\d+(\.\d+)+", said)
    version = found.group() if found else said.strip()
    if not version.startswith(PROTOC_VERSION + "."):
        raise RuntimeError(
            f"protoc at '{path}': got {version}, want {PROTOC_VERSION}; name another with "
            "PROTOC=PATH"
        )
    return path


def generate(protos: Path, out: Path) -> None:
    """Writes OUT/kvern/v1/*_pb2.py and *_pb2.pyi."""
    names = sorted(str(path.relative_to(protos)) for path in protos.glob("kvern/v1/*.proto"))
    if not names:
        raise RuntimeError(f"no protos under '{protos}', want kvern/v1/*.proto")
    command = [_protoc(), f"-I{protos}", f"--python_out={out}", f"--pyi_out={out}", *names]
    subprocess.run(command, check=True)


class StubsHook(BuildHookInterface[Any]):
    """An sdist carries the modules and needs no protoc; a checkout makes them."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        protos = root.parents[1] / "proto"
        if (protos / "kvern").is_dir():
            generate(protos, root / "src")
