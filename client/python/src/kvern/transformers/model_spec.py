"""What Kvern must know of a transformers model, read from the live model instead of guessed.

The inverse frequencies are those the model's rotary embedding computed, so every scaling that does
not change with the length of the text is covered by one path.
"""

from __future__ import annotations

from typing import Any

from kvern.models import ModelSpec, Rope
from kvern.transformers.refusal import unsupported

# By config.model_type. Of each, a test compares keys that Kvern renumbered with those that the
# model computes for the shorter text.
ROPE_LAYOUTS = {
    "cohere": "interleaved",
    "gemma": "half",
    "glm": "interleaved",
    "granite": "half",
    "llama": "half",
    "mistral": "half",
    "olmo2": "half",
    "phi": "half",
    "phi3": "half",
    "qwen2": "half",
    "qwen3": "half",
    "stablelm": "half",
    "starcoder2": "half",
}
# The others (dynamic, longrope) take other frequencies as the text grows.
_STATIC_ROPES = ("default", "linear", "llama3", "yarn")


def model_spec(model: Any) -> ModelSpec:
    """Geometry and RoPE of a causal language model of transformers.

    Errors: UNIMPLEMENTED for an architecture, a kind of layer or a scaling of RoPE that is not
    supported; the message lists what is.
    """
    config = model.config.get_text_config(decoder=True)
    kind = config.model_type
    if kind not in ROPE_LAYOUTS:
        raise unsupported("config.model_type", f"'{kind}'", ", ".join(ROPE_LAYOUTS))
    for layer_type in getattr(config, "layer_types", None) or ():
        if layer_type != "full_attention":
            raise unsupported(
                "config.layer_types", f"'{layer_type}'", "full_attention in every layer"
            )
    # Without layer_types transformers makes every layer a sliding one.
    window = getattr(config, "sliding_window", None)
    if getattr(config, "layer_types", None) is None and window is not None:
        raise unsupported(
            "config.sliding_window", str(window), "None: texts below it need no window"
        )
    head_dim = getattr(config, "head_dim", None)
    return ModelSpec(
        num_layers=config.num_hidden_layers,
        kv_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        head_dim=head_dim or config.hidden_size // config.num_attention_heads,
        q_heads=config.num_attention_heads,
        rope=_rope(model, ROPE_LAYOUTS[kind]),
        display_name=config.name_or_path or kind,
    )


def _rope(model: Any, layout: str) -> Rope:
    rotary = getattr(model.base_model, "rotary_emb", None)
    if rotary is None or not hasattr(rotary, "inv_freq"):
        raise unsupported("model", type(model).__name__, "base_model.rotary_emb with inv_freq")
    kind = getattr(rotary, "rope_type", "default")
    if kind not in _STATIC_ROPES:
        raise unsupported("config.rope_parameters", f"'{kind}'", ", ".join(_STATIC_ROPES))
    frequencies = rotary.inv_freq.detach().float().cpu().tolist()
    return Rope(
        inv_freq=tuple(frequencies),
        rotary_dim=2 * len(frequencies),
        layout=layout,
        attention_scaling=float(getattr(rotary, "attention_scaling", 1.0)),
    )
