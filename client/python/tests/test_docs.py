"""Every block of Python in the manual and in the README runs, in order."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from conftest import REPOSITORY, Server, random_cache

PAGES = ["docs/python.md", "client/python/README.md"]


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (REPOSITORY / page).read_text(), re.M | re.S)


@pytest.mark.parametrize("page", PAGES)
def test_page(server: Server, page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    k, v = random_cache(16, 8, 300, 64)
    names: dict[str, object] = {"k": k, "v": v, "__name__": page}
    code = blocks(page)
    assert code
    for block in code:
        if "import torch" in block and importlib.util.find_spec("torch") is None:
            continue
        text = block.replace("unix:/run/kvern/kvern.sock", server.address)
        exec(compile(text, page, "exec"), names)


def test_main_readme_runs(server: Server) -> None:
    k, v = random_cache(16, 8, 300, 64)
    code = blocks("README.md")
    assert code
    for block in code:
        text = block.replace("unix:/run/kvern/kvern.sock", server.address)
        exec(compile(text, "README.md", "exec"), {"k": k, "v": v})


def test_all_pages_exist() -> None:
    linked = re.findall(r"\]\((\w[\w.-]*\.md)\)", (REPOSITORY / "docs/python.md").read_text())
    assert linked
    assert [name for name in linked if not Path(REPOSITORY, "docs", name).exists()] == []
