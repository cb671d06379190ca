"""A model and its tokenizer from a directory, never from a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from kvern.calibrate.text import Encode
from kvern.errors import KvernError


def load(directory: str, dtype: str = "float32", threads: int = 0) -> tuple[Any, Encode]:
    """The model on the CPU in that dtype, and text to token ids without special tokens.

    threads: of torch; 0: as torch itself chooses. Errors: NOT_FOUND.
    """
    if not Path(directory, "config.json").is_file():
        raise KvernError(
            "NOT_FOUND", f"model: got '{directory}', want a directory with config.json"
        )
    if threads > 0:
        torch.set_num_threads(threads)
    logging.disable_progress_bar()
    made: Any = AutoModelForCausalLM
    model = made.from_pretrained(
        directory, dtype=getattr(torch, dtype), attn_implementation="sdpa", local_files_only=True
    ).eval()
    words: Any = AutoTokenizer
    tokenizer = words.from_pretrained(directory, local_files_only=True)

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    return model, encode
