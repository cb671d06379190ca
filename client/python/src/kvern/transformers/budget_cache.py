"""A cache that stays within a budget while the model generates.

It compacts itself after the last layer of a forward pass took its tokens in. The pass itself still
attends to all of them, so a long prompt is judged whole, and the next pass finds the smaller cache.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import DynamicCache

from kvern import Client, CompressResult, Inputs, KvernError, ModelSpec, Policy
from kvern.policy import as_policy, size
from kvern.transformers import compaction
from kvern.transformers.compaction import KEEP_LOGICAL, RENUMBER
from kvern.transformers.logical_layer import LogicalLayer
from kvern.transformers.model_spec import model_spec
from kvern.transformers.refusal import unsupported

_POSITION_BYTES = 4  # of a kept token in each layer and head


@dataclass(frozen=True)
class Budget:
    """How much a KvernCache may hold; one of tokens (in each layer) and memory is given.

    memory: of all layers, in bytes or ``"4MiB"``, positions of kept tokens included. every: tokens
    that come in between two compactions. The cache then shrinks by as many below the budget.
    """

    tokens: int | None = None
    memory: int | str | None = None
    every: int = 64


@dataclass(frozen=True)
class Step:
    """One compaction: the text's length, tokens held in each layer, bytes of the tensors."""

    logical_tokens: int
    tokens_before: int
    tokens_after: int
    bytes_before: int
    bytes_after: int
    scorer: str


class KvernCache(DynamicCache):
    """Give it to generate() or to the model as past_key_values; one sequence at a time.

    policy: by default ``evict50``, of which the budget is this cache's; codecs are refused, since
    tensors in this process would not shrink by them. positions: ``keep_logical`` leaves keys where
    they stand in the text. ``renumber`` moves the kept ones together, so that positions stay below
    the budget however long the text grows; the model's position_ids are then set by a hook on the
    model, as long as this cache lives. Either way the cache counts tokens of the text, as
    generate() wants it.

    steps: the compactions so far. Errors: UNIMPLEMENTED for models that are not supported,
    INVALID_ARGUMENT for a budget that leaves no room, and during generation those of
    Client.compress: the cache then holds all tokens that came in.
    """

    def __init__(
        self,
        model: Any,
        client: Client,
        budget: Budget,
        *,
        policy: Policy | str | None = None,
        positions: str = KEEP_LOGICAL,
    ) -> None:
        super().__init__()
        compaction.check_positions(positions)
        self.steps: list[Step] = []
        self._client = client
        self._spec = model_spec(model)
        self._positions = positions
        self._every = budget.every
        self.budget_tokens = self._tokens(budget, model.dtype)
        self._policy = self._with_budget(policy)
        self.layer_class_to_replicate = None
        self.layers = [LogicalLayer() for _ in range(self._spec.num_layers)]
        if positions == RENUMBER:
            _shift_positions(model, self)

    @property
    def nbytes(self) -> int:
        """Of all tensors held."""
        return compaction.cache_bytes(self)

    @property
    def physical_tokens(self) -> int:
        """Tokens held in each layer; get_seq_length() is the text's length."""
        return self._layer(0).physical_tokens

    @property
    def dropped_tokens(self) -> int:
        return self._layer(0).dropped

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        cache_kwargs: dict[str, Any] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if key_states.shape[0] != 1:
            raise unsupported("cache", f"a batch of {key_states.shape[0]}", "one sequence")
        seen = super().update(key_states, value_states, layer_idx, cache_kwargs)
        last = layer_idx == len(self.layers) - 1
        if last and self.physical_tokens >= self.budget_tokens:
            self.compact()
        return seen

    def compact(self) -> None:
        """Shrinks to the budget less its `every`; of itself once the budget is reached."""
        keys, values = compaction.planes(self)
        before = self.nbytes, self.physical_tokens
        held = compaction.layer_positions(self.layers)
        length = self.get_seq_length()
        inputs = Inputs() if held is None else Inputs(positions=held, logical_tokens=length)
        # A copy, since a view would keep the whole pool of shared memory from other calls.
        result: CompressResult[torch.Tensor] = self._client.compress(
            keys, values, self._policy, model=self._spec, inputs=inputs, copy=True
        )
        compaction.check_counts(result)
        self._check_codecs(result)
        for index in range(len(self.layers)):
            layer = self._layer(index)
            compaction.fill(layer, layer, result, index)
            if self._positions == RENUMBER:
                layer.kept_positions = None
        self.steps.append(
            Step(
                logical_tokens=length,
                tokens_before=before[1],
                tokens_after=self.physical_tokens,
                bytes_before=before[0],
                bytes_after=self.nbytes,
                scorer=result.chain.scorer,
            )
        )

    def _layer(self, index: int) -> LogicalLayer:
        layer = self.layers[index]
        assert isinstance(layer, LogicalLayer)
        return layer

    def _tokens(self, budget: Budget, dtype: torch.dtype) -> int:
        spec = self._spec
        bytes_per_token = _token_bytes(spec, dtype)
        if self._positions == KEEP_LOGICAL:
            bytes_per_token += spec.num_layers * spec.kv_heads * _POSITION_BYTES
        if (budget.tokens is None) == (budget.memory is None):
            raise _invalid("budget: got both or none of tokens and memory, want one")
        tokens = budget.tokens
        if budget.memory is not None:
            if isinstance(budget.memory, str) and budget.memory.endswith("%"):
                raise _invalid(f"budget.memory: got '{budget.memory}', want bytes or '4MiB'")
            tokens = size(budget.memory, 0) // bytes_per_token
        assert tokens is not None
        if not 1 <= budget.every < tokens:
            raise _invalid(
                f"budget.every: got {budget.every}, want 1 to {tokens - 1}: the budget holds "
                f"{tokens} tokens of {bytes_per_token} bytes"
            )
        return tokens

    def _with_budget(self, policy: Policy | str | None) -> Policy:
        given = as_policy("evict50" if policy is None else policy)
        budgets = (given.budget_tokens, given.keep_ratio, given.budget_bytes)
        if any(part is not None for part in budgets):
            raise _invalid("policy: got a budget, want it in the cache's own budget")
        kept = self.budget_tokens - self._every
        return replace(compaction.placed(given, self._positions), budget_tokens=kept)

    def _check_codecs(self, result: CompressResult[torch.Tensor]) -> None:
        codecs = {result.chain.k_codec, result.chain.v_codec} - {"raw16"}
        if codecs:
            raise KvernError(
                "FAILED_PRECONDITION",
                f"policy.codec: got {', '.join(sorted(codecs))}, want raw16: a code would be "
                "decoded here, and coded again at every compaction",
                field="policy.codec",
            )


def bytes_per_token(model: Any) -> int:
    """Of keys and values in all layers."""
    return _token_bytes(model_spec(model), model.dtype)


def _token_bytes(spec: ModelSpec, dtype: torch.dtype) -> int:
    return 2 * spec.num_layers * spec.kv_heads * spec.head_dim * dtype.itemsize


def _shift_positions(model: Any, cache: KvernCache) -> None:
    """Makes the model see the cache's positions, which are lower than those of the text."""
    owner = weakref.ref(cache)

    def hook(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        del module
        used = kwargs.get("past_key_values")
        if not isinstance(used, KvernCache) or owner() is not used:
            return None
        position_ids = kwargs.get("position_ids")
        if position_ids is None:
            tokens = kwargs.get("input_ids", args[0] if args else None)
            count = (kwargs["inputs_embeds"] if tokens is None else tokens).shape[1]
            first = used.get_seq_length()
            position_ids = torch.arange(first, first + count, device=model.device)[None]
        return args, {**kwargs, "position_ids": position_ids - used.dropped_tokens}

    handle = model.register_forward_pre_hook(hook, with_kwargs=True)
    weakref.finalize(cache, handle.remove)


def _invalid(message: str) -> KvernError:
    return KvernError("INVALID_ARGUMENT", message, field=message.partition(":")[0])
