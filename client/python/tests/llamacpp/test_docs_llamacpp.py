"""docs/llamacpp.md: its block runs, and what it lists is what there is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import REPOSITORY, Server
from fake_llama import FakeLlama
from slot_files import SPEC, Sample

from kvern.llamacpp import gguf

PAGE = (REPOSITORY / "docs/llamacpp.md").read_text()


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeLlama]:
    running = FakeLlama(tmp_path, Sample(tokens=100).pack())
    running.answers["/props"] = (200, b'{"model_path":"m.gguf"}')
    yield running
    running.stop()


def test_page(
    server: Server,
    fake: FakeLlama,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("kvern.llamacpp.gguf.model_spec", lambda path: SPEC)
    [block] = re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S)
    text = block.replace("unix:/run/kvern/kvern.sock", server.address)
    text = text.replace("http://127.0.0.1:8080", fake.url)
    text = text.replace("/run/llama/slots", str(fake.directory))
    exec(compile(text, "docs/llamacpp.md", "exec"), {})
    assert capsys.readouterr().out == "100 -> 50 tokens; 102400 -> 51200 bytes\n"


def test_lists_are_complete() -> None:
    assert ", ".join(sorted(gguf.ROPE_LAYOUTS)) in PAGE
