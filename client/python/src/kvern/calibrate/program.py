"""`kvern calibrate`: a model and a text in, the files out that scorers and budgeters read."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from kvern.calibrate import figure, sensitivity
from kvern.calibrate.artifact import Floats, Moments
from kvern.calibrate.model import load
from kvern.calibrate.published import load_published
from kvern.calibrate.statistics import SINK, Statistics, collect
from kvern.calibrate.text import Text, read
from kvern.errors import KvernError

_SENSITIVITY_CONTEXT = 1024


def parser() -> argparse.ArgumentParser:
    words = argparse.ArgumentParser(
        prog="kvern calibrate",
        description="Measures a model's queries on text, so that caches can be scored by them.",
    )
    words.add_argument("--model", metavar="DIR", help="a causal language model of transformers")
    words.add_argument(
        "--text",
        metavar="FILE[@TOKENS]",
        nargs="+",
        default=[],
        help="plain text, UTF-8; of each the first TOKENS tokens count, by default --tokens",
    )
    words.add_argument("--out", metavar="FILE", required=True, help="kvern-calibration/1")
    words.add_argument(
        "--moments",
        metavar="FILE",
        help="kvern-query-moments/1; by default beside --out, NAME-moments.safetensors",
    )
    words.add_argument("--tokens", type=int, default=32768, help="of each text (32768)")
    words.add_argument("--window", type=int, default=2048, help="tokens of one pass (2048)")
    words.add_argument(
        "--sensitivity",
        type=int,
        default=2,
        metavar="WINDOWS",
        help="windows on which layers are judged (2); 0: write no layer_sensitivity",
    )
    words.add_argument(
        "--sensitivity-text",
        metavar="FILE",
        nargs="+",
        default=[],
        help="their texts; by default what follows the calibrated part of each --text",
    )
    words.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    words.add_argument("--threads", type=int, default=0, help="of torch; 0: its own choice")
    words.add_argument("--plot", metavar="FILE", help="by default beside --out, NAME.svg")
    words.add_argument(
        "--from-pt", metavar="FILE", help="convert TriAttention's published statistics instead"
    )
    return words


def main(words: Sequence[str] | None = None) -> int:
    """Exit code 0. Errors: KvernError, OSError."""
    options = parser().parse_args(words)
    if options.from_pt:
        return _convert(options)
    if not options.model or not options.text:
        raise KvernError("INVALID_ARGUMENT", "want --model and --text, or --from-pt")
    if options.window < 2 * SINK:
        raise KvernError("INVALID_ARGUMENT", f"window: got {options.window}, want 8 or more")
    model, encode = load(options.model, options.dtype, options.threads)
    texts = [read(path, encode, options.tokens) for path in options.text]
    judged = _judged_windows(options, texts, encode)
    windows = [window for text in texts for window in text.windows(options.window)]
    statistics = collect(model, tqdm(windows, desc="queries", unit="window"))
    moments = statistics.moments()
    centres = replace(statistics.centres(), layer_sensitivity=_sensitivity(model, moments, judged))
    metadata = _metadata(model, options, texts, statistics)
    frequencies = _inverse_frequencies(model, statistics)
    out = Path(options.out)
    moments_file = options.moments or out.with_name(f"{out.stem}-moments{out.suffix}")
    centres.save(out, metadata, frequencies)
    skipped = {"n_sink_skipped": f"{SINK} per window of {options.window}"}
    moments.save(moments_file, metadata | skipped, frequencies)
    plot = options.plot or out.with_suffix(".svg")
    figure.draw(centres, plot)
    print(f"{statistics.tokens} tokens: {out}, {moments_file}, {plot}")
    return 0


def _convert(options: argparse.Namespace) -> int:
    published = load_published(options.from_pt)
    frequencies = np.empty(0, np.float32)
    if options.model:
        frequencies = _matching_frequencies(options, published.centres.mean_re.shape)
    published.centres.save(options.out, published.metadata, frequencies)
    layers, q_heads, bands = published.centres.mean_re.shape
    print(f"{layers} layers, {q_heads} query heads, {bands} bands: {options.out}")
    return 0


def _matching_frequencies(options: argparse.Namespace, shape: tuple[int, ...]) -> Floats:
    """Of a model that the statistics must fit. Errors: INVALID_ARGUMENT."""
    model, _ = load(options.model, options.dtype, options.threads)
    config = model.config.get_text_config(decoder=True)
    frequencies: Floats = model.base_model.rotary_emb.inv_freq.float().numpy()
    want = (config.num_hidden_layers, config.num_attention_heads, len(frequencies))
    if shape != want:
        raise KvernError(
            "INVALID_ARGUMENT",
            f"from_pt: got statistics of {shape} (layers, query heads, bands), want the model's "
            f"{want}",
        )
    return frequencies


def _judged_windows(
    options: argparse.Namespace, texts: Sequence[Text], encode: Any
) -> list[Sequence[int]]:
    """Windows that calibration has not seen. Errors: INVALID_ARGUMENT when texts are too short."""
    length = min(_SENSITIVITY_CONTEXT, options.window) + sensitivity.FUTURE
    sources = [text.rest() for text in texts]
    if options.sensitivity_text:
        sources = [read(path, encode, 1).ids for path in options.sensitivity_text]
    windows: list[Sequence[int]] = []
    for index in range(options.sensitivity):
        source = sources[index % len(sources)]
        first = index // len(sources) * length
        windows.append(source[first : first + length])
        if len(windows[-1]) < length:
            raise KvernError(
                "INVALID_ARGUMENT",
                f"sensitivity: got {len(source)} tokens that were not calibrated on, want "
                f"{first + length}: give more text, fewer --tokens, or --sensitivity 0",
            )
    return windows


def _sensitivity(model: Any, moments: Moments, windows: Sequence[Sequence[int]]) -> Floats | None:
    if not windows:
        return None
    with tqdm(desc="layers", unit="batch") as bar:
        return sensitivity.layer_sensitivity(model, moments, windows, bar.update)


def _inverse_frequencies(model: Any, statistics: Statistics) -> Floats:
    frequencies: Floats = model.base_model.rotary_emb.inv_freq.float().cpu().numpy()
    if 2 * len(frequencies) != statistics.rotary_dim:
        raise KvernError(
            "UNIMPLEMENTED",
            f"rope: got {len(frequencies)} frequencies and {statistics.rotary_dim} rotated dims",
        )
    return frequencies


def _metadata(
    model: Any, options: argparse.Namespace, texts: Sequence[Text], statistics: Statistics
) -> dict[str, str]:
    config = model.config.get_text_config(decoder=True)
    q_heads = config.num_attention_heads
    rotary = model.base_model.rotary_emb
    rope = getattr(config, "rope_parameters", None) or {}
    counts = [sum(len(part) for part in text.windows(options.window)) for text in texts]
    found = {
        "model": Path(options.model).name,
        "num_layers": config.num_hidden_layers,
        "q_heads": q_heads,
        "kv_heads": getattr(config, "num_key_value_heads", None) or q_heads,
        "head_dim": getattr(config, "head_dim", None) or config.hidden_size // q_heads,
        "rope_theta": rope.get("rope_theta", ""),
        "rope_type": rope.get("rope_type", "default"),
        "rope_layout": statistics.layout,
        "rope_attention_scaling": getattr(rotary, "attention_scaling", 1.0),
        "dtype": options.dtype,
        "tokens": statistics.tokens,
        "window": options.window,
        "text_source": "; ".join(
            f"{text.name}: {count} tokens" for text, count in zip(texts, counts, strict=True)
        ),
        "text_sha256": "; ".join(text.sha256 for text in texts),
    }
    if options.sensitivity:
        found["layer_sensitivity"] = (
            f"f32[layer]: mean KL(full || this layer evicted) of {sensitivity.FUTURE} tokens, keep "
            f"ratios 1/16, 1/8, 1/4, 1/2, {options.sensitivity} windows"
        )
    return {key: str(value) for key, value in found.items()}
