"""The spec that is read from a model: every supported architecture, and clear refusals."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import tiny

import kvern
import kvern.transformers as kt

WINDOW = kvern.Policy(budget_tokens=40, selector="sink_recent", scorer="key_norm", sink=4)
_SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 3.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
}


def _renumbering_error(client: kvern.Client, model: Any) -> tuple[float, float]:
    """Largest error of renumbered keys of layer 0 against those of the shorter text, and the error
    without rotating them."""
    ids = tiny.text(120)
    cache = tiny.fill(model, ids)
    made = kt.compress(cache, model, client, WINDOW, positions="renumber")
    kept = made.result.kept_indices[0, 0].tolist()
    want = tiny.keys(tiny.fill(model, ids[:, kept]))
    unrotated = tiny.keys(cache)[:, :, kept]
    return (
        float((tiny.keys(made.cache) - want).abs().max() / want.abs().max()),
        float((unrotated - want).abs().max() / want.abs().max()),
    )


@pytest.mark.parametrize("kind", sorted(kt.ROPE_LAYOUTS))
def test_renumbered_keys_are_those_of_the_shorter_text(client: kvern.Client, kind: str) -> None:
    spec = kt.model_spec(tiny.model(kind))
    assert (spec.num_layers, spec.q_heads, spec.kv_heads) == (2, 6, 2)
    error, unrotated = _renumbering_error(client, tiny.model(kind))
    assert error < 1e-5
    assert unrotated > 0.1


@pytest.mark.parametrize("scaling", sorted(_SCALINGS))
def test_scaled_rope(client: kvern.Client, scaling: str) -> None:
    rope = {"rope_theta": 10000.0, **_SCALINGS[scaling]}
    model = tiny.make("llama", rope_parameters=rope)
    spec = kt.model_spec(model)
    assert spec.rope is not None
    assert (spec.rope.attention_scaling != 1.0) == (scaling == "yarn")
    error, unrotated = _renumbering_error(client, model)
    assert error < 1e-5
    assert unrotated > 0.1


def test_an_unknown_architecture_is_refused(client: kvern.Client) -> None:
    model = tiny.make("gpt_neox", num_key_value_heads=6)
    with pytest.raises(kvern.KvernError, match=r"got 'gpt_neox', want cohere, .*qwen3") as caught:
        kt.compress(tiny.fill(model, tiny.text(20)), model, client, WINDOW)
    assert caught.value.code == "UNIMPLEMENTED"


def test_a_rope_that_changes_with_the_length_is_refused() -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    with pytest.raises(kvern.KvernError, match="got 'dynamic', want default, linear"):
        kt.model_spec(tiny.make("llama", rope_parameters=rope))


def test_sliding_windows_are_refused() -> None:
    for kind, words in (
        ("mistral", {"sliding_window": 16}),
        ("qwen2", {"layer_types": ["full_attention", "sliding_attention"]}),
    ):
        with pytest.raises(kvern.KvernError, match="sliding") as caught:
            kt.model_spec(tiny.make(kind, **words))
        assert caught.value.code == "UNIMPLEMENTED"
        assert "uncompressed" in caught.value.next_step
