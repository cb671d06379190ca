"""KvernPress: what presses of kvpress do during prefill, done by a Kvern server.

The protocol is theirs: a forward hook on every attention layer of the model, `compress` for what it
does, `compression_ratio` for the share that goes. kvpress itself is not needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

from kvern import Client, CompressResult, Inputs, KvernError, ModelSpec, Policy
from kvern.policy import as_policy, stage
from kvern.transformers import queries
from kvern.transformers.compaction import check_counts
from kvern.transformers.logical_layer import tensors
from kvern.transformers.model_spec import model_spec
from kvern.transformers.refusal import unsupported

_DEFAULT_SINK = 4  # of a policy, and of ExpectedAttentionPress


class KvernPress:
    """Compresses the cache at the end of a prompt, layer by layer.

    with KvernPress(client, scorer="keydiff", compression_ratio=0.5)(model):
        model(ids, past_key_values=cache)

    compression_ratio: share of the tokens that go, in [0, 1). scorer: one stage of Kvern, with
    nothing protected beside what the scorer cannot judge, as in kvpress. policy: instead of a
    scorer, anything else that Kvern can do without a codec, by default ``evict50``'s scorers and
    protection. Queries that snapkv and expected_attention need are computed from the layer's input.

    kept: of each layer of the last prompt, i32 [batch, kv_heads, kept], ascending. Batches are
    allowed, as there. Errors: those of Client.compress, of `compress` and of model_spec.
    """

    def __init__(
        self,
        client: Client,
        *,
        compression_ratio: float = 0.0,
        scorer: str = "",
        policy: Policy | str | None = None,
    ) -> None:
        if scorer and policy is not None:
            raise _invalid("scorer: got a policy too, want one of them")
        self.compression_ratio = compression_ratio
        self.kept: dict[int, torch.Tensor] = {}
        self._client = client
        self._policy = _as_in_kvpress(scorer) if scorer else as_policy(policy or "evict50")
        budgets = (
            self._policy.budget_tokens,
            self._policy.keep_ratio,
            self._policy.budget_bytes,
        )
        if any(part is not None for part in budgets):
            raise _invalid("policy: got a budget, want compression_ratio")
        if self._policy.positions == "renumber":
            raise _invalid("policy.positions: got 'renumber', want 'keep': presses leave keys")
        self._stages = [stage("scorer", text) for text in _texts(self._policy) if text]
        self._spec: ModelSpec | None = None

    @classmethod
    def like(cls, press: Any, client: Client) -> KvernPress:
        """With the scorer, ratio and windows of a KnormPress, KeyDiffPress, SnapKVPress or
        ExpectedAttentionPress. Errors: UNIMPLEMENTED for other presses."""
        kind = type(press).__name__
        if kind not in _SCORERS:
            raise unsupported("press", kind, ", ".join(_SCORERS))
        made = cls(client, scorer=_SCORERS[kind](press), compression_ratio=press.compression_ratio)
        made._policy = replace(made._policy, sink=getattr(press, "n_sink", 0))
        return made

    @property
    def compression_ratio(self) -> float:
        return self._compression_ratio

    @compression_ratio.setter
    def compression_ratio(self, ratio: float) -> None:
        if not 0 <= ratio < 1:
            raise _invalid(f"compression_ratio: got {ratio}, want [0, 1)")
        self._compression_ratio = ratio

    def post_init_from_model(self, model: Any) -> None:
        """What must be known of the model. One layer, since layers are compressed one by one."""
        self._spec = replace(model_spec(model), num_layers=1)

    def compress(
        self,
        module: Any,
        hidden_states: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        attentions: torch.Tensor | None,
        kwargs: dict[str, Any],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """keys, values: [batch, kv_heads, tokens, head_dim]; answers those that stay."""
        del attentions  # queries and keys say the same
        tokens = keys.shape[2]
        if self._compression_ratio == 0:
            return keys, values
        kept_tokens = max(1, int(tokens * (1 - self._compression_ratio)))
        kept = []
        for row in range(keys.shape[0]):
            policy, inputs = self._sight(module, hidden_states[row : row + 1], kwargs)
            result: CompressResult[torch.Tensor] = self._client.compress(
                keys[row].detach().cpu(),
                values[row].detach().cpu(),
                replace(policy, budget_tokens=kept_tokens),
                model=self._spec,
                inputs=inputs,
            )
            check_counts(result)
            kept.append(torch.tensor(result.kept_indices))
        self.kept[module.layer_idx] = torch.stack(kept)
        index = self.kept[module.layer_idx].long().to(keys.device)[..., None]
        index = index.expand(-1, -1, -1, keys.shape[3])
        return keys.gather(2, index), values.gather(2, index)

    def forward_hook(self, module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        """After an attention layer took a prompt in; later tokens pass."""
        del args
        hidden_states, cache = kwargs["hidden_states"], kwargs["past_key_values"]
        if int(kwargs["cache_position"][-1]) + 1 != hidden_states.shape[1]:
            return output
        layer = cache.layers[module.layer_idx]
        if type(layer) is not DynamicLayer:
            raise unsupported("cache", type(layer).__name__, "DynamicLayer (full attention)")
        layer.keys, layer.values = self.compress(
            module, hidden_states, *tensors(layer), output[1], kwargs
        )
        return output

    @contextmanager
    def __call__(self, model: Any) -> Iterator[None]:
        """Prompts that the model takes in here are compressed."""
        self.post_init_from_model(model)
        hooks = []
        try:
            for layer in model.base_model.layers:
                layer.self_attn.rotary_emb = model.base_model.rotary_emb
                hooks.append(
                    layer.self_attn.register_forward_hook(self.forward_hook, with_kwargs=True)
                )
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _sight(
        self, module: Any, hidden: torch.Tensor, kwargs: dict[str, Any]
    ) -> tuple[Policy, Inputs]:
        """With what the scorers need to see of the prompt's queries."""
        policy, inputs = self._policy, Inputs()
        for spec in self._stages:
            if spec.name == "snapkv":
                tokens = int(spec.params.get("window", 32))
                rope = kwargs["position_embeddings"]
                last = queries.window(module, hidden, rope, tokens).float().cpu().contiguous()
                inputs = replace(inputs, q_window=last)
            if spec.name == "expected_attention" and not policy.calibrations:
                sink = _DEFAULT_SINK if policy.sink is None else policy.sink
                seen = queries.moments(module, hidden, sink)
                artifact = self._client.import_calibration(seen)
                policy = replace(policy, calibrations=(artifact.name,))
        return policy, inputs


def _as_in_kvpress(scorer: str) -> Policy:
    """The sinks of expected_attention are part of its method; of the others nothing stays."""
    sink = _DEFAULT_SINK if stage("scorer", scorer).name == "expected_attention" else 0
    return Policy(scorer=scorer, sink=sink, recent=0, recent_share=0.0)


def _texts(policy: Policy) -> tuple[str, ...]:
    return (policy.scorer,) if isinstance(policy.scorer, str) else tuple(policy.scorer)


def _expected_attention(press: Any) -> str:
    if not press.use_covariance:
        raise unsupported("press.use_covariance", "False", "True")
    norm = "true" if press.use_vnorm else "false"
    future, epsilon = press.n_future_positions, press.epsilon
    return f"expected_attention:future={future},value_norm={norm},epsilon={epsilon}"


_SCORERS: dict[str, Callable[[Any], str]] = {
    "KnormPress": lambda press: "key_norm",
    "KeyDiffPress": lambda press: "keydiff",
    "SnapKVPress": lambda press: (
        f"snapkv:window={press.window_size},pool_width={press.kernel_size}"
    ),
    "ExpectedAttentionPress": _expected_attention,
}


def _invalid(message: str) -> KvernError:
    return KvernError("INVALID_ARGUMENT", message, field=message.partition(":")[0])
