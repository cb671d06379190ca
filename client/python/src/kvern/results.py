"""What came of a call, as frozen dataclasses. Arrays are numpy unless the caller's were torch's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Generic

import numpy as np
from numpy.typing import NDArray

from kvern.arrays import Array
from kvern.errors import KvernError
from kvern.v1 import compression_pb2, types_pb2

SHAPE_CLASSES = {
    types_pb2.SHAPE_CLASS_S0: "S0",
    types_pb2.SHAPE_CLASS_S1: "S1",
    types_pb2.SHAPE_CLASS_S2: "S2",
    types_pb2.SHAPE_CLASS_S3: "S3",
    types_pb2.SHAPE_CLASS_S4: "S4",
}
_OUTCOMES = {
    compression_pb2.OUTCOME_APPLIED: "applied",
    compression_pb2.OUTCOME_NOOP: "noop",
    compression_pb2.OUTCOME_SKIPPED: "skipped",
    compression_pb2.OUTCOME_FAILED: "failed",
}


@dataclass(frozen=True)
class Timings:
    """Microseconds on the server's clock."""

    queue_us: int
    plan_us: int
    score_us: int
    select_us: int
    encode_us: int
    move_us: int


@dataclass(frozen=True)
class Quality:
    """Figures that judge a result; None where a figure was not computed.

    kept_attention_mass: share of the observed attention that the kept tokens hold (needs
    attention_mass). k_error, v_error: |x - decode(encode(x))|^2 / |x|^2 of coded keys and values.
    """

    kept_attention_mass: float | None
    k_error: float | None
    v_error: float | None
    nan_scores: int
    nonfinite_values: int


@dataclass(frozen=True)
class Chain:
    """What ran, after presets and fallbacks, in the words of the command line.

    fallback: why this and not the preset's first; empty when it is the first.
    """

    preset: str
    budgeter: str
    scorer: str
    selector: str
    k_codec: str
    v_codec: str
    fallback: str
    budget_grew: bool


@dataclass(frozen=True, eq=False)
class Facts:
    """Counts and figures of one sequence.

    outcome: ``applied``, or ``noop`` when it was within its budget. kept_counts: i32
    [layers, kv_heads]. Bytes are of k and v, after compression with metadata counted.
    """

    outcome: str
    epoch: int
    logical_tokens: int
    physical_tokens: int
    dropped_tokens: int
    shape_class: str
    kept_counts: NDArray[np.int32] = field(repr=False)
    bytes_before: int
    bytes_after: int
    quality: Quality
    timings: Timings
    chain: Chain
    warnings: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Plan(Facts):
    """What a policy would keep.

    kept_indices: source tokens, ascending, i32 [layers, kv_heads, max_kept], -1 fills shorter rows.
    positions: their rotary positions, same shape. scores: f32 [layers, kv_heads, tokens], NaN for
    protected tokens; None unless asked for.
    """

    kept_indices: NDArray[np.int32] = field(repr=False)
    positions: NDArray[np.int32] = field(repr=False)
    scores: NDArray[np.float32] | None = field(repr=False)


@dataclass(frozen=True, eq=False)
class PackedCache:
    """A cache as its codecs packed it (docs/packed-format.md).

    blocks: u8 [bytes]. table: i64 [rows, 8]. mean_key: f16 [layers, kv_heads, head_dim], None
    without rm. dtype: what decoding restores.
    """

    blocks: NDArray[np.uint8] = field(repr=False)
    table: NDArray[np.int64] = field(repr=False)
    mean_key: NDArray[np.float16] | None = field(repr=False)
    dtype: str


@dataclass(frozen=True, eq=False)
class CompressResult(Plan, Generic[Array]):
    """A compressed cache; the layers axis is absent everywhere where the given k had none.

    via: how the bytes travelled. shared: whether k and v are views of pooled shared memory, which
    then stays out of use until the last view of it is gone. packed: with packed=True, what the
    codecs made.
    """

    via: str
    shared: bool
    packed: PackedCache | None = field(repr=False)
    kv: tuple[Array, Array] | None = field(repr=False)

    @property
    def k(self) -> Array:
        """Kept keys [layers, kv_heads, max_kept, head_dim], zeros beyond a row's count.

        Of a codec, what decoding gives. Errors: FAILED_PRECONDITION after packed=True.
        """
        return self._dense()[0]

    @property
    def v(self) -> Array:
        """Kept values, as k."""
        return self._dense()[1]

    def _dense(self) -> tuple[Array, Array]:
        if self.kv is None:
            raise KvernError(
                "FAILED_PRECONDITION",
                "k and v: got a packed result, want one that was asked for without packed=True",
            )
        return self.kv


@dataclass(frozen=True, eq=False)
class SequenceResult(Facts):
    """One sequence of `compress_sequences`.

    outcome: also ``skipped`` or ``failed``, which error explains. block_ids: the compacted table in
    attention order; freed_block_ids: no longer in it. next_slot: where the next token goes, None
    when its block is not known. lengths: kept tokens per layer (S3) or head (S4), else empty.
    kept_indices, positions: i32 [layers, kv_heads, max_kept], None unless asked for.
    stored_sequence: the store's name of the result, for placement ``to_store``.
    """

    sequence_id: str
    error: KvernError | None
    block_ids: NDArray[np.uint32] = field(repr=False)
    freed_block_ids: NDArray[np.uint32] = field(repr=False)
    next_slot: int | None
    lengths: tuple[int, ...] = field(repr=False)
    publishable_prefix_tokens: int
    stored_sequence: str
    kept_indices: NDArray[np.int32] | None = field(repr=False)
    positions: NDArray[np.int32] | None = field(repr=False)


def facts(
    result: compression_pb2.SequenceResult, rows: tuple[int, int], chain: Chain
) -> dict[str, Any]:
    """The arguments of Facts. rows: [layers, kv_heads]."""
    counts = np.array(result.kept_counts, np.int32)
    return {
        "outcome": _OUTCOMES.get(result.outcome, "failed"),
        "epoch": result.epoch,
        "logical_tokens": result.num_logical_tokens,
        "physical_tokens": result.num_physical_tokens,
        "dropped_tokens": result.num_dropped_tokens,
        "shape_class": SHAPE_CLASSES.get(result.shape_class, ""),
        "kept_counts": counts.reshape(rows) if counts.size else np.zeros(rows, np.int32),
        "bytes_before": result.bytes_before,
        "bytes_after": result.bytes_after,
        "quality": _quality(result.quality),
        "timings": _timings(result.timings),
        "chain": chain,
        "warnings": tuple(result.warnings),
    }


def chain(resolved: compression_pb2.ResolvedPolicy) -> Chain:
    return Chain(
        preset=resolved.preset,
        budgeter=resolved.budgeter,
        scorer=resolved.scorer,
        selector=resolved.selector,
        k_codec=resolved.k_codec,
        v_codec=resolved.v_codec,
        fallback=resolved.fallback,
        budget_grew=resolved.budget_grew,
    )


def packed(table: bytes, mean_key: bytes, blocks: Any, dtype: str, shape: Any) -> PackedCache:
    """shape: [layers, kv_heads, head_dim] of the mean keys."""
    mean = np.frombuffer(mean_key, "<f2").reshape(shape) if mean_key else None
    return PackedCache(
        blocks=np.frombuffer(blocks, np.uint8),
        table=np.frombuffer(table, "<i8").reshape(-1, 8),
        mean_key=mean,
        dtype=dtype,
    )


def _quality(quality: compression_pb2.Quality) -> Quality:
    mass = quality.kept_attention_mass if quality.HasField("kept_attention_mass") else None
    return Quality(
        kept_attention_mass=mass,
        k_error=quality.k_error if quality.HasField("k_error") else None,
        v_error=quality.v_error if quality.HasField("v_error") else None,
        nan_scores=quality.nan_scores,
        nonfinite_values=quality.nonfinite_values,
    )


def _timings(timings: compression_pb2.Timings) -> Timings:
    return Timings(
        queue_us=timings.queue_us,
        plan_us=timings.plan_us,
        score_us=timings.score_us,
        select_us=timings.select_us,
        encode_us=timings.encode_us,
        move_us=timings.move_us,
    )
