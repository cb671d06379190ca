"""examples/chat_under_budget.py: flat bytes, and the first turn's fact still there at the end."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import real_model
from conftest import REPOSITORY, Server

_ROUND = re.compile(r"^ *\d+ +(\d+) tokens +([\d.]+) MiB of +([\d.]+) +(\d+)% kept", re.M)


def run(server: Server, *flags: str, said: str = "") -> str:
    real_model.need()
    script = REPOSITORY / "examples" / "chat_under_budget.py"
    command = [sys.executable, str(script), "--server", server.address, *flags]
    done = subprocess.run(
        command,
        input=said,
        capture_output=True,
        text=True,
        timeout=560,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_scripted_chat_of_2048_tokens_in_a_quarter(server: Server) -> None:
    out = run(server, "--script", "--no-reference")
    rounds = [tuple(float(word) for word in row) for row in _ROUND.findall(out)]
    assert len(rounds) > 20
    assert 1900 < rounds[-1][0] <= 2048
    budget = 2048 * 30 * 3 * 64 * 2 * 4 / 4 / 2**20
    assert max(held for _, held, _, _ in rounds) <= budget
    flat = [held for tokens, held, _, _ in rounds if tokens > 700]
    assert min(flat) > 0.8 * budget
    assert rounds[-1][3] <= 25
    assert "Orsolya Bartok" in out
    assert out.rstrip().endswith("found")
    assert "NOT FOUND" not in out


def test_someone_talks_to_it(server: Server) -> None:
    out = run(server, "--no-reference", "--budget", "4MiB", said="What is the capital of France?\n")
    assert "Paris" in out
    assert len(_ROUND.findall(out)) == 1
