"""Geometry and rotary embedding of a model, as the server keeps them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvern.errors import invalid
from kvern.v1 import model_pb2, types_pb2

_LAYOUTS = {
    "half": types_pb2.ROPE_LAYOUT_HALF,
    "interleaved": types_pb2.ROPE_LAYOUT_INTERLEAVED,
}


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding of the keys.

    theta: base of the frequencies. inv_freq: the model's live inverse frequencies, radians per
    token, [rotary_dim / 2]; empty: theta^(-2f / rotary_dim). rotary_dim: rotated dims of each head;
    0: all, or twice the size of inv_freq. layout: ``half`` (Hugging Face) or ``interleaved`` (many
    GGUF models). attention_scaling: factor on cos and sin.
    """

    theta: float = 0.0
    inv_freq: Sequence[float] = ()
    rotary_dim: int = 0
    layout: str = "half"
    attention_scaling: float = 1.0

    def __post_init__(self) -> None:
        """Any sequence of numbers will do: a list, an array, a tensor."""
        object.__setattr__(self, "inv_freq", tuple(float(band) for band in self.inv_freq))

    def to_proto(self) -> types_pb2.Rope:
        if self.layout not in _LAYOUTS:
            raise invalid("rope.layout", f"rope.layout: got '{self.layout}', want {_known()}")
        return types_pb2.Rope(
            layout=_LAYOUTS[self.layout],
            rotary_dim=self.rotary_dim,
            inv_freq=list(self.inv_freq),
            theta=self.theta,
            attention_scaling=self.attention_scaling,
        )

    @staticmethod
    def from_proto(rope: types_pb2.Rope) -> Rope:
        interleaved = rope.layout == types_pb2.ROPE_LAYOUT_INTERLEAVED
        return Rope(
            theta=rope.theta,
            inv_freq=tuple(rope.inv_freq),
            rotary_dim=rope.rotary_dim,
            layout="interleaved" if interleaved else "half",
            attention_scaling=rope.attention_scaling,
        )


@dataclass(frozen=True)
class ModelSpec:
    """One model's cache. q_heads 0 means as many as kv_heads; rope None means unknown."""

    num_layers: int
    kv_heads: int
    head_dim: int
    q_heads: int = 0
    rope: Rope | None = None
    display_name: str = ""

    def to_proto(self) -> types_pb2.ModelSpec:
        return types_pb2.ModelSpec(
            num_layers=self.num_layers,
            q_heads=self.q_heads or self.kv_heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            rope=self.rope.to_proto() if self.rope is not None else None,
            display_name=self.display_name,
        )

    @staticmethod
    def from_proto(spec: types_pb2.ModelSpec) -> ModelSpec:
        return ModelSpec(
            num_layers=spec.num_layers,
            kv_heads=spec.kv_heads,
            head_dim=spec.head_dim,
            q_heads=spec.q_heads,
            rope=Rope.from_proto(spec.rope) if spec.HasField("rope") else None,
            display_name=spec.display_name,
        )

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> ModelSpec:
        """The spec of a Hugging Face ``config.json`` (a dict, or ``model.config.to_dict()``).

        Errors: INVALID_ARGUMENT for a missing key, and for a rope_type whose frequencies depend on
        more than these words: give `Rope(inv_freq=...)` of the live model then.
        """
        q_heads = _integer(config, "num_attention_heads")
        head_dim = config.get("head_dim") or _integer(config, "hidden_size") // q_heads
        scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
        theta = config.get("rope_theta") or scaling.get("rope_theta") or 0.0
        share = config.get("partial_rotary_factor") or scaling.get("partial_rotary_factor") or 1.0
        rope = None
        if theta > 0:
            rotary_dim = int(head_dim * share)
            frequencies = inverse_frequencies(theta, rotary_dim, scaling)
            rope = Rope(theta=float(theta), inv_freq=frequencies, rotary_dim=rotary_dim)
        return ModelSpec(
            num_layers=_integer(config, "num_hidden_layers"),
            kv_heads=int(config.get("num_key_value_heads") or q_heads),
            head_dim=int(head_dim),
            q_heads=q_heads,
            rope=rope,
            display_name=str(config.get("_name_or_path") or ""),
        )


@dataclass(frozen=True)
class Calibration:
    """An artifact the server holds. layers, q_heads, head_dim: what it covers."""

    name: str
    format: str
    size_bytes: int
    layers: int
    q_heads: int
    head_dim: int
    has_layer_sensitivity: bool

    @staticmethod
    def from_proto(of: model_pb2.Calibration) -> Calibration:
        return Calibration(
            name=of.name,
            format=of.format,
            size_bytes=of.size_bytes,
            layers=of.num_layers,
            q_heads=of.q_heads,
            head_dim=of.head_dim,
            has_layer_sensitivity=of.has_layer_sensitivity,
        )


@dataclass(frozen=True)
class Model:
    """A registered model: ``models/{model}``, its geometry, names of its default calibrations."""

    name: str
    spec: ModelSpec
    calibrations: tuple[str, ...] = ()

    @staticmethod
    def from_proto(model: model_pb2.Model) -> Model:
        return Model(model.name, ModelSpec.from_proto(model.spec), tuple(model.calibrations))


def inverse_frequencies(
    theta: float, rotary_dim: int, scaling: Mapping[str, Any] | str | None = None
) -> tuple[float, ...]:
    """Radians per token of each band [rotary_dim / 2].

    scaling: a Hugging Face ``rope_scaling``, as a dict or JSON, of rope_type default, linear or
    llama3. Errors: INVALID_ARGUMENT.
    """
    bands = [theta ** (-2.0 * band / rotary_dim) for band in range(rotary_dim // 2)]
    words: Mapping[str, Any] = json.loads(scaling) if isinstance(scaling, str) else scaling or {}
    kind = words.get("rope_type", words.get("type", "default"))
    if kind == "linear":
        factor = _positive(words, "factor")
        return tuple(band / factor for band in bands)
    if kind == "llama3":
        return tuple(_llama3(band, words) for band in bands)
    if kind != "default":
        raise invalid(
            "rope_scaling",
            f"rope_scaling: got rope_type '{kind}', want default, linear or llama3; of others give "
            "the model's live frequencies: Rope(inv_freq=...)",
        )
    return tuple(bands)


def _llama3(band: float, words: Mapping[str, Any]) -> float:
    """Long wavelengths are stretched by factor, short ones stay, those between blend."""
    factor, low = _positive(words, "factor"), _positive(words, "low_freq_factor")
    high = _positive(words, "high_freq_factor")
    context = _positive(words, "original_max_position_embeddings")
    wavelength = 2 * math.pi / band
    if wavelength > context / low:
        return band / factor
    if wavelength < context / high:
        return band
    smooth = (context / wavelength - low) / (high - low)
    return (1 - smooth) * band / factor + smooth * band


def _positive(words: Mapping[str, Any], key: str) -> float:
    value = words.get(key)
    if not isinstance(value, (int, float)) or not value > 0:
        raise invalid("rope_scaling", f"rope_scaling: '{key}' is missing or not a number above 0")
    return float(value)


def _integer(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or value < 1:
        raise invalid(f"config.{key}", f"config.{key}: got {value!r}, want 1 or more")
    return value


def _known() -> str:
    return " or ".join(_LAYOUTS)
