"""A real server for the tests: KVERND and KVERN name the programs."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import kvern

REPOSITORY = Path(__file__).resolve().parents[3]
Cache = tuple[NDArray[np.float16], NDArray[np.float16]]


class Server:
    """kvernd on a Unix socket and on a port of the loopback."""

    def __init__(self, *flags: str, directory: str | None = None) -> None:
        self._own = directory is None
        self.directory = directory or tempfile.mkdtemp(prefix="kvern-py-")
        self.address = f"unix:{self.directory}/kvern.sock"
        command = [os.environ["KVERND"], "--listen", self.address, "--listen", "127.0.0.1:0"]
        command += ["--metrics-listen", "127.0.0.1:0", *flags]
        command += [] if "--store-bytes" in flags else ["--store-bytes", "64MiB"]
        log = Path(self.directory) / "log"
        with log.open("wb") as out:
            self.process = subprocess.Popen(command, stderr=out)
        said = ""
        while " serves on " not in said or not said.endswith("\n"):
            assert self.process.poll() is None, said
            said = log.read_text()
        port = re.search(r"127\.0\.0\.1:(\d+)", said)
        metrics = re.search(r"metrics on port (\d+)", said)
        assert port and metrics, said
        self.tcp_address = f"127.0.0.1:{port.group(1)}"
        self._metrics_port = metrics.group(1)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def metrics(self) -> dict[str, float]:
        """Every sample by its name with labels."""
        url = f"http://127.0.0.1:{self._metrics_port}/metrics"
        with urllib.request.urlopen(url, timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        samples = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in samples}

    def stop(self) -> None:
        self.kill()
        if self._own:
            subprocess.run(["rm", "-rf", self.directory], check=True)


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.stop()


@pytest.fixture
def own_server() -> Iterator[Callable[..., Server]]:
    """Starts servers that the test may kill."""
    with contextlib.ExitStack() as stack:

        def start(*flags: str, directory: str | None = None) -> Server:
            running = Server(*flags, directory=directory)
            stack.callback(running.stop)
            return running

        yield start


@pytest.fixture
def client(server: Server) -> Iterator[kvern.Client]:
    with kvern.Client(server.address) as connected:
        yield connected


@pytest.fixture
def cache() -> Cache:
    """k and v, float16 [4 layers, 2 kv_heads, 300 tokens, 64]."""
    return random_cache(4, 2, 300, 64)


def random_cache(*shape: int, seed: int = 7) -> Cache:
    values = np.random.default_rng(seed).standard_normal((2, *shape)).astype(np.float16)
    return values[0], values[1]


ROPED = kvern.ModelSpec(num_layers=4, kv_heads=2, head_dim=64, rope=kvern.Rope(theta=10000.0))


def kvern_command(*words: str) -> None:
    subprocess.run([os.environ["KVERN"], *words], check=True, capture_output=True, timeout=60)
