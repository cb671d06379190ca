"""The one set of inputs that every program reads: raw little-endian files, made from one seed.

One layer, standard normal keys and values, bf16. Parameters of the scorers are given twice where a
peer wants another form of the same numbers (mean and covariance instead of linear and factors)."""
import pathlib

import numpy as np

KV_HEADS, TOKENS, HEAD_DIM = 8, 32768, 128
BANDS = HEAD_DIM // 2
WINDOW, RANK, KEPT = 32, 8, 2048
THETA = 1e4  # as the rotation tables of tests/bench/layer.cc
OFFSETS = 2.0 ** np.arange(17)
SEED = 7


def to_bf16(values):
    """f32 to the nearest bf16, as u16."""
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(values):
    return (values.astype(np.uint32) << 16).view(np.float32)


def inverse_frequencies():
    return THETA ** (-np.arange(BANDS) / BANDS)


def triattention(random, q_heads):
    """Calibration of random query heads, and what its mean over offsets comes to at t = TOKENS."""
    re, im = random.standard_normal((2, q_heads, BANDS))
    center = re + 1j * im
    length = np.abs(center) * 1.3
    omega = inverse_frequencies()
    mean_offset = np.exp(1j * OFFSETS[:, None] * omega).mean(0)
    u = center * np.exp(1j * TOKENS * omega) * mean_offset
    return {"tri_center_re": center.real, "tri_center_im": center.imag, "tri_length": length,
            "tri_u": np.concatenate([u.real, u.imag], 1), "tri_w": length - np.abs(center)}


def expected_attention(random, q_heads):
    """logit = <linear, k> + sum_j <factor_j, k>^2 + sum_i diagonal_i k_i^2, in both forms."""
    linear = random.standard_normal((q_heads, HEAD_DIM)) * 0.1
    factors = random.standard_normal((q_heads, RANK, HEAD_DIM)) * 0.03
    diagonal = random.random((q_heads, HEAD_DIM)) * 0.01
    covariance = np.einsum("hri,hrj->hij", factors, factors)
    covariance[:, np.arange(HEAD_DIM), np.arange(HEAD_DIM)] += diagonal
    exact = {"ea_linear": linear, "ea_factors": factors, "ea_diagonal": diagonal}
    rounded = {"ea_mean": linear * np.sqrt(HEAD_DIM), "ea_covariance": covariance * 2 * HEAD_DIM}
    return exact, rounded


def make(folder):
    """Fills `folder`, or leaves it when it was filled before."""
    folder = pathlib.Path(folder)
    done = folder / "complete"
    if done.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(SEED)
    for name in ("keys", "values"):
        rows = random.standard_normal((KV_HEADS, TOKENS, HEAD_DIM), dtype=np.float32)
        to_bf16(rows).tofile(folder / f"{name}.bf16")
    random.standard_normal((KV_HEADS, TOKENS), dtype=np.float32).tofile(folder / "scores.f32")
    for group in (1, 4):
        q_heads = KV_HEADS * group
        exact, rounded = expected_attention(random, q_heads)
        rounded.update(triattention(random, q_heads))
        rounded["queries"] = random.standard_normal((q_heads, WINDOW, HEAD_DIM))
        for name, values in exact.items():
            values.astype("<f8").tofile(folder / f"{name}.g{group}.f64")
        for name, values in rounded.items():
            values.astype("<f4").tofile(folder / f"{name}.g{group}.f32")
    done.touch()


def load(folder, name, *shape):
    """One file as f32 [shape], bf16 widened."""
    path = pathlib.Path(folder) / name
    if path.suffix == ".bf16":
        return from_bf16(np.fromfile(path, "<u2")).reshape(shape)
    return np.fromfile(path, "<f4").reshape(shape)


def load_rows(folder, name):
    """keys or values: f32 [kv_heads, tokens, head_dim]."""
    return load(folder, f"{name}.bf16", KV_HEADS, TOKENS, HEAD_DIM)
