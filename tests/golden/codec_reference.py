#!/usr/bin/env python3
"""Figures of the codecs on the sample caches, from numpy alone: an oracle that shares no code with
the product (ruling 23).

    tests/golden/codec_reference.py > tests/data/golden/codec-reference.json

Per cache, role and codec: NMSE over the coded tokens, and for keys the RMSE of the attention logits
q.k / sqrt(head_dim) over `q_window`, after removing each query's mean error (softmax ignores it).
The first 4 tokens are sinks: raw under codecs below 8 bits and never part of the mean key.
"""
import json
import pathlib
import re
import struct

import numpy as np

DATA = pathlib.Path(__file__).resolve().parents[1] / "data"
SINKS = 4
# Positive Lloyd-Max levels of a coordinate of the unit sphere in 128 dimensions, times sqrt(128).
LEVELS = np.array([.12787, .38638, .65362, .93710, 1.24777, 1.60434, 2.04593, 2.68886])


def load(path):
    raw = path.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8:8 + size])
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = (8 + size + at for at in entry["data_offsets"])
        if entry["dtype"] == "BF16":
            bits = np.frombuffer(raw[begin:end], "<u2").astype(np.uint32) << 16
            values = bits.view(np.float32)
        else:
            values = np.frombuffer(raw[begin:end], {"F32": "<f4", "I32": "<i4"}[entry["dtype"]])
        tensors[name] = values.reshape(entry["shape"])
    return tensors


def half(x):
    return np.asarray(x).astype(np.float16).astype(np.float64)


def to_bf16(x):
    bits = np.asarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def hadamard(dims):
    matrix = np.ones((1, 1))
    while len(matrix) < dims:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    assert len(matrix) == dims
    state, signs = dims, np.empty(dims)
    for i in range(dims):  # SplitMix64 seeded with head_dim; an odd output means -1
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        signs[i] = -1.0 if (z ^ (z >> 31)) & 1 else 1.0
    return matrix * signs / np.sqrt(dims)


def rotate(x, positions, inv_freq, direction):
    """x: [..., tokens, dims], band f pairs coordinates f and f + dims / 2."""
    phase = np.asarray(positions, np.float64)[:, None] * inv_freq.astype(np.float64)
    cos, sin = np.cos(phase), direction * np.sin(phase)
    re, im = np.split(x.astype(np.float64), 2, axis=-1)
    return np.concatenate([re * cos - im * sin, re * sin + im * cos], axis=-1)


def code_i8(x):
    scale = half(np.abs(x).max(-1, keepdims=True) / 127)
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
    return np.clip(np.rint(x * inverse), -127, 127) * scale


def code_lm4(x):
    levels = half(np.concatenate([-LEVELS[::-1], LEVELS]))
    bounds = (levels[1:] + levels[:-1]) / 2
    dims = x.shape[-1]
    norm = np.sqrt((x * x).sum(-1, keepdims=True))
    unit = np.divide(x * np.sqrt(dims), norm, out=np.zeros_like(x), where=norm > 0)
    coded = levels[np.searchsorted(bounds, unit, side="left")]
    return coded * half(norm / np.sqrt((coded * coded).sum(-1, keepdims=True)))


def tables():
    """Sign-folded vectors by index, from the committed constants: the format is what they say."""
    text = (DATA.parents[1] / "kernels/base/sfv_table.h").read_text()
    found = {}
    for name, body in re.findall(r"kSfv(\d)Words\[\d+\] = \{([^}]*)\}", text):
        words = np.array([int(word, 16) for word in re.findall(r"0x[0-9A-F]{8}", body)])
        found["sfv" + name] = np.stack([words >> 8 * j & 255 for j in range(4)], 1) / 64
    return found


def code_sfv(x, name):
    table = tables()[name]
    dims = x.shape[-1]
    norm = np.sqrt((x * x).sum(-1, keepdims=True))
    unit = np.divide(x * np.sqrt(dims), norm, out=np.zeros_like(x), where=norm > 0)
    blocks = np.abs(unit).reshape(-1, 4)
    nearest = np.argmin((table * table).sum(1) / 2 - blocks @ table.T, axis=1)
    coded = np.copysign(table[nearest].reshape(x.shape), unit)
    if name == "sfv2":  # unbiased
        return coded * half(norm * np.sqrt(dims) / (coded * unit).sum(-1, keepdims=True))
    return coded * half(norm / np.sqrt((coded * coded).sum(-1, keepdims=True)))


def code_affine(x, axis):
    low, high = x.min(axis, keepdims=True), x.max(axis, keepdims=True)
    zero, scale = half(low), half((high - low) / 15)
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
    return np.clip(np.rint((x - zero) * inverse), 0, 15) * scale + zero


def code_i4(x):
    size = 64 if x.shape[-1] % 64 == 0 else x.shape[-1]
    return code_affine(x.reshape(*x.shape[:-1], -1, size), -1).reshape(x.shape)


def code_channels(x):
    """Blocks of 64 tokens; what fills none stays as it is."""
    tokens, dims = x.shape[-2:]
    whole = tokens // 64 * 64
    blocks = x[..., :whole, :].reshape(*x.shape[:-2], -1, 64, dims)
    coded = code_affine(blocks, -2).reshape(*x.shape[:-2], whole, dims)
    return np.concatenate([coded, x[..., whole:, :]], axis=-2)


def code_fp8(x):
    scale = half(np.abs(x).max(-1, keepdims=True) / 448)
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
    value = np.clip(x * inverse, -448, 448)
    exponent = np.maximum(np.floor(np.log2(np.maximum(np.abs(value), 2.0**-20))), -6)
    step = 2.0 ** (exponent - 3)
    return np.rint(value / step) * step * scale


CODES = {"i8t": code_i8, "lm4": code_lm4, "i4t": code_i4, "kch4": code_channels, "fp8t": code_fp8,
         "sfv3": lambda x: code_sfv(x, "sfv3"), "sfv2": lambda x: code_sfv(x, "sfv2")}
ROTATED = {"H", "lm4", "sfv3", "sfv2"}
RAW_SINKS = {"lm4", "i4t", "kch4", "sfv3", "sfv2"}  # below 8 bits


def reconstruct(cache, role, codec, first):
    x = cache[role].astype(np.float64)
    flags = codec.split("+")
    offset = 0.0
    if "rm" in flags:
        plain = rotate(x, cache["positions"], cache["inv_freq"], -1)
        mean = half(plain[..., SINKS:, :].mean(-2, keepdims=True))
        offset = rotate(np.broadcast_to(mean, x.shape), cache["positions"], cache["inv_freq"], 1)
    residual = x - offset
    matrix = hadamard(x.shape[-1]) if ROTATED & set(flags) else np.eye(x.shape[-1])
    code = next(CODES[flag] for flag in flags if flag in CODES)
    coded = np.copy(residual)
    coded[..., first:, :] = code(residual[..., first:, :] @ matrix.T) @ matrix
    return to_bf16(coded + offset).astype(np.float64)


def figures(cache, role, codec):
    first = SINKS if RAW_SINKS & set(codec.split("+")) else 0
    x = cache[role].astype(np.float64)
    error = (reconstruct(cache, role, codec, first) - x)[..., first:, :]
    found = {"nmse": float((error ** 2).sum() / (x[..., first:, :] ** 2).sum())}
    if role == "k":
        queries = cache["q_window"].astype(np.float64)
        layers, q_heads, window, dims = queries.shape
        queries = queries.reshape(layers, x.shape[1], q_heads // x.shape[1] * window, dims)
        logits = queries @ error.swapaxes(-1, -2) / np.sqrt(dims)
        logits -= logits.mean(-1, keepdims=True)
        found["logit_rmse"] = float(np.sqrt((logits ** 2).mean()))
    return found


def main():
    codecs = {"k": ["i8t", "i8t+rm", "H+i8t", "H+i8t+rm", "lm4", "lm4+rm",
                    "fp8t", "fp8t+rm", "kch4", "i4t+rm", "H+i4t+rm", "sfv3", "sfv3+rm"],
              "v": ["i8t", "H+i8t", "lm4", "fp8t", "i4t", "H+i4t", "sfv3", "sfv2"]}
    out = {}
    for name in ("pride-1024", "qwen-512"):
        cache = load(DATA / f"{name}.safetensors")
        out[name] = {role: {codec: figures(cache, role, codec) for codec in names}
                     for role, names in codecs.items()}
    print(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
