"""Every block of Python in docs/transformers.md runs, in order; what it lists is what there is."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import tiny
from conftest import REPOSITORY, Server

from kvern.transformers.model_spec import ROPE_LAYOUTS
from kvern.transformers.queries import QUERY_MODELS

PAGE = "docs/transformers.md"


def test_page(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    names = {"model": tiny.make("llama"), "input_ids": tiny.text(120), "__name__": PAGE}
    blocks = re.findall(r"^```python\n(.*?)^```$", (REPOSITORY / PAGE).read_text(), re.M | re.S)
    assert len(blocks) == 4
    for block in blocks:
        text = block.replace("unix:/run/kvern/kvern.sock", server.address)
        exec(compile(text, PAGE, "exec"), names)
    names["client"].close()  # type: ignore[attr-defined]
    said = capsys.readouterr().out
    assert "keydiff:unrotate=true" in said
    assert "for 159 tokens" in said


def test_lists_are_complete() -> None:
    text = (REPOSITORY / PAGE).read_text()
    assert ", ".join(sorted(ROPE_LAYOUTS)) in text
    assert ", ".join(QUERY_MODELS) in text
