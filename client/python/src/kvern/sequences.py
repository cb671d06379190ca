"""A step's cohort of paged and stored sequences: one call of an engine, and no cache bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from kvern import request as requests
from kvern import results, rpc
from kvern.errors import KvernError, from_status, invalid
from kvern.policy import Policy, as_policy
from kvern.pool import Pool
from kvern.request import Inputs
from kvern.rpc import Operation
from kvern.session import ModelLike, Session
from kvern.store import full_name
from kvern.v1 import compression_pb2, types_pb2

_PLACEMENTS = {
    "": types_pb2.PLACEMENT_UNSPECIFIED,
    "copy_to": types_pb2.PLACEMENT_COPY_TO,
    "compact": types_pb2.PLACEMENT_COMPACT,
    "indices_only": types_pb2.PLACEMENT_INDICES_ONLY,
    "to_store": types_pb2.PLACEMENT_TO_STORE,
}
_UNKNOWN_SLOT = 2**64 - 1


@dataclass(frozen=True)
class PagedSequence:
    """One request's cache in a pool.

    block_ids: in attention order. tokens: physical tokens of the longest (layer, kv_head).
    destination_block_ids: fresh blocks, for placement ``copy_to``. epoch: the caller's generation
    of the sequence. lengths: tokens per layer or head where they differ. readonly_prefix_tokens:
    scored, never moved. policy: replaces the call's.
    """

    sequence_id: str
    pool: Pool | str
    block_ids: Sequence[int]
    tokens: int
    destination_block_ids: Sequence[int] = ()
    epoch: int = 0
    lengths: Sequence[int] = ()
    readonly_prefix_tokens: int = 0
    inputs: Inputs = field(default_factory=Inputs)
    policy: Policy | str | None = None

    def fill(self, wire: compression_pb2.SequenceRequest) -> None:
        wire.paged.pool = self.pool.name if isinstance(self.pool, Pool) else self.pool
        wire.paged.block_ids.extend(self.block_ids)
        wire.paged.num_tokens = self.tokens
        wire.paged.lengths.extend(self.lengths)
        wire.paged.destination_block_ids.extend(self.destination_block_ids)
        wire.readonly_prefix_tokens = self.readonly_prefix_tokens


@dataclass(frozen=True)
class StoreSequence:
    """A sequence in the store, ``sequences/{name}``, which the result replaces."""

    sequence_id: str
    name: str
    epoch: int = 0
    inputs: Inputs = field(default_factory=Inputs)
    policy: Policy | str | None = None

    def fill(self, wire: compression_pb2.SequenceRequest) -> None:
        wire.stored.sequence = full_name(self.name)


@dataclass(frozen=True)
class Cohort:
    """One call. with_kept: answer kept_indices and positions. request_id: a replay within 60 s
    answers the same and changes nothing."""

    model: ModelLike
    sequences: Sequence[PagedSequence | StoreSequence]
    policy: Policy | str | None = None
    placement: str = ""
    with_kept: bool = False
    validate_only: bool = False
    request_id: str = ""


def compress(session: Session, cohort: Cohort) -> Operation[tuple[results.SequenceResult, ...]]:
    """Faults of one sequence stand in its result; those of the whole call are raised."""
    model = yield from session.model(cohort.model)
    if cohort.placement not in _PLACEMENTS:
        known = ", ".join(name for name in _PLACEMENTS if name)
        raise invalid("placement", f"placement: got '{cohort.placement}', want one of {known}")
    request = compression_pb2.CompressCacheRequest(
        request_id=cohort.request_id,
        model=model.name,
        policy=_policy(cohort, cohort.policy),
        validate_only=cohort.validate_only,
    )
    if cohort.with_kept:
        request.response_mask.paths.extend(["kept", "positions"])
    for sequence in cohort.sequences:
        wire = request.sequences.add(
            sequence_id=sequence.sequence_id,
            epoch=sequence.epoch,
            num_logical_tokens=sequence.inputs.logical_tokens,
        )
        requests.fill_inputs(wire, sequence.inputs, has_layers_axis=True)
        if sequence.policy is not None:
            wire.policy.CopyFrom(_policy(cohort, sequence.policy))
        sequence.fill(wire)
    response = yield from rpc.call(rpc.COMPRESS_CACHE, request)
    found, chain = [], compression_pb2.ResolvedPolicy()
    for result in response.results:
        chain = result.resolved if result.HasField("resolved") else chain  # said once a cohort
        found.append(_result(result, model.spec.kv_heads, results.chain(chain)))
    return tuple(found)


def release(ids: Sequence[str]) -> Operation[int]:
    request = compression_pb2.ReleaseSequencesRequest(sequence_ids=ids)
    return (yield from rpc.call(rpc.RELEASE_SEQUENCES, request)).released


def _policy(cohort: Cohort, policy: Policy | str | None) -> types_pb2.Policy:
    """No policy at all leaves the choice to the server: evict50 where blocks stay dense."""
    wire = types_pb2.Policy() if policy is None else as_policy(policy).to_proto(None)
    wire.placement = _PLACEMENTS[cohort.placement]
    return wire


def _result(
    result: compression_pb2.SequenceResult, kv_heads: int, chain: results.Chain
) -> results.SequenceResult:
    rows = (len(result.kept_counts) // kv_heads, kv_heads)
    failed = result.outcome in (compression_pb2.OUTCOME_FAILED, compression_pb2.OUTCOME_SKIPPED)
    error: KvernError | None = from_status(result.status) if failed else None
    slots = max(result.kept_counts, default=0)
    kept, positions = (
        np.frombuffer(data, "<i4").reshape(*rows, slots) if data else None
        for data in (result.kept, result.positions)
    )
    return results.SequenceResult(
        **results.facts(result, rows, chain),
        sequence_id=result.sequence_id,
        error=error,
        block_ids=np.array(result.block_ids, np.uint32),
        freed_block_ids=np.array(result.freed_block_ids, np.uint32),
        next_slot=None if result.next_slot == _UNKNOWN_SLOT else result.next_slot,
        lengths=tuple(result.lengths),
        publishable_prefix_tokens=result.publishable_prefix_tokens,
        stored_sequence=result.stored_sequence,
        kept_indices=kept,
        positions=positions,
    )
