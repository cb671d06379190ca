"""A tiny model with random weights and texts of chance bytes: the whole way in seconds."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from kvern.calibrate.text import Text


def tiny_model() -> Any:
    """Two layers, four query heads over two of keys; one token is one byte."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=1024,
    )
    make: Any = LlamaForCausalLM
    model = make(config).eval()
    with torch.no_grad():  # fresh weights are so small that all keys look alike
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.mul_(4)
    return model


def encode(text: str) -> list[int]:
    return list(text.encode())


def texts(count: int = 2, size: int = 1500) -> list[Text]:
    made = []
    for index in range(count):
        raw = random.Random(index).randbytes(size)
        made.append(Text(f"chance{index}", hashlib.sha256(raw).hexdigest(), list(raw), size))
    return made
