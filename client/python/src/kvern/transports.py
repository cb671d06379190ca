"""How a cache reaches the server and comes back: shared memory, in the message, or the store."""

from __future__ import annotations

import contextlib
import uuid
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvern import results, rpc, store
from kvern.arrays import Raw
from kvern.broker import broker_paths
from kvern.dtypes import RAW_DTYPES, WIRE_DTYPES
from kvern.errors import KvernError, from_status
from kvern.request import Job, tensor
from kvern.rpc import Operation
from kvern.session import Session
from kvern.slabs import BLOCK_TOKENS, Part, Slab, SlabKey
from kvern.v1 import compression_pb2, pool_pb2, store_pb2, types_pb2

# With these codes the server has ended with the call for certain, so the slab's memory is quiet.
_ANSWERED = (
    "INVALID_ARGUMENT",
    "FAILED_PRECONDITION",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "ABORTED",
    "RESOURCE_EXHAUSTED",
)
# Ids of closed slabs are told to the server in batches.
_FORGET_BATCH = 64
_ANY_SCORER = types_pb2.StageSpec(name="key_norm")
_WAITER = "kvern-py-wait-"
_Request = compression_pb2.CompressCacheRequest


@dataclass
class Carried:
    """What came back.

    k, v: raw [layers, kv_heads, tokens, head_dim]; None after a NOOP, a plan, and where packed is.
    shared: they are views of a slab.
    """

    result: compression_pb2.SequenceResult
    k: Raw | None = None
    v: Raw | None = None
    shared: bool = False
    packed: results.PackedCache | None = None


def expects_packed(policy: types_pb2.Policy) -> bool:
    """Whether the result will be packed. A guess that spares a refused call: what it does not
    foresee comes back as CODEC_NEEDS_STORE."""
    if policy.HasField("codecs"):
        return not {policy.codecs.k, policy.codecs.v} <= {"", "raw16"}
    return policy.preset not in ("", "evict50")


def inline(session: Session, job: Job[Any], request: _Request) -> Operation[Carried]:
    _check_rows(job, "inline")
    request.policy.placement = types_pb2.PLACEMENT_RETURN
    source = request.sequences[0].inline
    source.layer_indices.extend(job.layer_indices)
    source.k.CopyFrom(tensor(job.k))
    source.v.CopyFrom(tensor(job.v))
    result = yield from _compress_one(request)
    layers, kv_heads, _, head_dim = job.k.shape
    if result.HasField("packed"):
        if not job.packed:
            raise KvernError(
                "FAILED_PRECONDITION",
                f"via: got 'inline' and codecs k={result.resolved.k_codec}, "
                f"v={result.resolved.v_codec}, whose answer is packed, want a way that decodes it",
                reason="CODEC_NEEDS_STORE",
                field="via",
            )
        got, shape = result.packed, (layers, kv_heads, head_dim)
        packed = results.packed(got.table, got.mean_key, got.blocks, job.k.dtype, shape)
        return Carried(result, packed=packed)
    if job.plan or result.outcome == compression_pb2.OUTCOME_NOOP:
        return Carried(result)
    shape4 = (layers, kv_heads, result.num_physical_tokens, head_dim)
    k, v = (
        np.frombuffer(bytearray(data), RAW_DTYPES[job.k.dtype]).reshape(shape4)
        for data in (result.k.data, result.v.data)
    )
    return Carried(result, k, v)


def through_store(session: Session, job: Job[Any], request: _Request) -> Operation[Carried]:
    _check_rows(job, "store")
    sequence = request.sequences[0]
    name = store.full_name(sequence.sequence_id)
    header = store_pb2.StoredSequence(
        name=name,
        model=request.model,
        layer_indices=job.layer_indices,
        dtype=WIRE_DTYPES[job.k.dtype],
        num_tokens=job.k.shape[2],
        num_logical_tokens=sequence.num_logical_tokens,
    )
    if sequence.HasField("positions"):
        header.positions.CopyFrom(sequence.positions)
        sequence.ClearField("positions")
    quiet = False
    try:
        yield from store.put(header, job.k, job.v)
        sequence.stored.sequence = name
        carried = yield from _to_store(job, request)
        quiet = True
        return carried
    except KvernError as error:
        quiet = error.code in _ANSWERED
        raise
    finally:
        deleted = False
        try:
            deleted = yield from session.delete_stored(name)
        finally:
            if not (quiet and deleted):
                session.doubt(name)


def through_pool(session: Session, job: Job[Any], request: _Request) -> Operation[Carried]:
    layers, kv_heads, tokens, head_dim = job.k.shape
    present = job.layer_indices or tuple(range(layers))
    key = SlabKey(request.model, job.k.dtype, present, kv_heads, head_dim)
    slab = None
    if job.k.whole is not None and job.v.whole is not None:
        slab = session.slabs.take_source(key, job.k.whole, job.v.whole)
    lies_there = slab is not None
    if slab is None:
        slab = session.slabs.take(key, tokens)
    quiet = False
    try:
        yield from open_slab(session, slab)
        if not lies_there:
            yield from rpc.work(lambda: _fill(slab, job))
        _name_source(slab, job, request)
        if expects_packed(request.policy):
            carried = yield from _to_store(job, request)
        else:
            carried = yield from _copy_to(session, job, request, slab)
        quiet = True
        return carried
    except KvernError as error:
        quiet = error.code in _ANSWERED
        raise
    finally:
        to_store = request.policy.placement == types_pb2.PLACEMENT_TO_STORE and not job.plan
        name = store.full_name(slab.sequence_id) if to_store else ""
        deleted = False
        try:
            if not quiet and request.sequences[0].HasField("paged"):
                yield from _await_worker(request.model, key)
            deleted = yield from session.delete_stored(name)
        finally:
            quiet = quiet and (deleted or not name)
            if name and not quiet:
                session.doubt(name)
            yield from end_slab(session, slab, quiet)


def open_slab(session: Session, slab: Slab) -> Operation[None]:
    """Attaches and registers it, unless that was done before."""
    if slab.pool:
        return
    info = yield from session.info()
    paths = broker_paths(session.address, info.broker_address)
    attachment_id = yield from rpc.work(lambda: slab.open(paths))
    pool = slab.describe(attachment_id, session.engine)
    request = pool_pb2.RegisterPoolRequest(pool=pool)
    slab.pool = (yield from rpc.call(rpc.REGISTER_POOL, request)).pool.name


def end_slab(session: Session, slab: Slab, quiet: bool) -> Operation[None]:
    """Gives it back. After a call that was cut short the server may still write into it, so nobody
    uses it again."""
    if not quiet or not slab.pool:
        slab.close()
    gone = [dropped.sequence_id for dropped in session.slabs.end_call(slab)]
    batch = 1 if slab.closed else _FORGET_BATCH
    yield from session.forget_sequences(gone, at_least=batch, again=not quiet)


def _await_worker(model: str, key: SlabKey) -> Operation[None]:
    """Ends when the server's worker, which takes calls in order, has ended with those before.

    What a call that was cut short leaves behind can be cleaned up only then. One token is planned,
    which costs next to nothing.
    """
    shape = (1, key.kv_heads, 1, key.head_dim)
    token = types_pb2.Tensor(
        dtype=WIRE_DTYPES[key.dtype], shape=shape, data=bytes(key.kv_heads * key.token_bytes())
    )
    source = compression_pb2.InlineSource(layer_indices=key.layers[:1], k=token, v=token)
    policy = types_pb2.Policy(budget=types_pb2.Budget(tokens=1), scorers=[_ANY_SCORER])
    request = _Request(model=model, policy=policy, validate_only=True)
    request.sequences.add(sequence_id=f"{_WAITER}{uuid.uuid4().hex}", inline=source)
    with contextlib.suppress(KvernError):
        yield from rpc.clean_up(rpc.COMPRESS_CACHE, request)


def _fill(slab: Slab, job: Job[Any]) -> None:
    part = Part(slab, "source")
    for plane, planes in enumerate((job.k, job.v)):
        target = part.array(plane, job.k.shape[2])
        for slot, layer in enumerate(planes.layers):
            np.copyto(target[slot], layer)


def _name_source(slab: Slab, job: Job[Any], request: _Request) -> None:
    tokens = job.k.shape[2]
    sequence = request.sequences[0]
    sequence.sequence_id = slab.sequence_id
    slab.epoch += 2  # higher than the server's last answer: it remembers nothing of earlier calls
    sequence.epoch = slab.epoch
    sequence.paged.pool = slab.pool
    sequence.paged.num_tokens = tokens
    sequence.paged.block_ids.extend(range(-(-tokens // BLOCK_TOKENS)))
    sequence.paged.lengths.extend(job.lengths())


def _copy_to(session: Session, job: Job[Any], request: _Request, slab: Slab) -> Operation[Carried]:
    """The result lies behind the source, and is read in place."""
    part = Part(slab, "result")
    request.policy.placement = types_pb2.PLACEMENT_COPY_TO
    paged = request.sequences[0].paged
    first = slab.half_blocks
    paged.destination_block_ids.extend(range(first, first + len(paged.block_ids)))
    try:
        result = yield from _compress_one(request)
    except KvernError as error:
        if error.reason != "CODEC_NEEDS_STORE":
            raise
        paged.ClearField("destination_block_ids")
        return (yield from _to_store(job, request))
    if job.plan or result.outcome == compression_pb2.OUTCOME_NOOP:
        return Carried(result)
    tokens = result.num_physical_tokens
    if list(result.block_ids) != list(range(first, first + -(-tokens // BLOCK_TOKENS))):
        raise KvernError(
            "INTERNAL",
            f"the server's answer does not fit the request: got {len(result.block_ids)} blocks, "
            f"want those of {tokens} tokens in the order given",
        )
    k, v = part.array(0, tokens), part.array(1, tokens)
    _zero_unused(result, k, v)
    if not job.copy and session.slabs.may_share(slab):
        return Carried(result, k, v, shared=True)
    return Carried(result, k.copy(), v.copy())


def _zero_unused(result: compression_pb2.SequenceResult, k: Raw, v: Raw) -> None:
    """Slots beyond a row's count hold what was in the blocks before."""
    layers, kv_heads, tokens, _ = k.shape
    counts = np.array(result.kept_counts, np.int64).reshape(layers, kv_heads)
    for layer, head in np.argwhere(counts < tokens):
        k[layer, head, counts[layer, head] :] = 0
        v[layer, head, counts[layer, head] :] = 0


def _to_store(job: Job[Any], request: _Request) -> Operation[Carried]:
    """Places the result in the store and takes it out; the caller deletes it there."""
    request.policy.placement = types_pb2.PLACEMENT_TO_STORE
    layers, kv_heads, _, head_dim = job.k.shape
    result = yield from _compress_one(request)
    if job.plan or not result.stored_sequence:
        return Carried(result)
    fetched = yield from store.fetch(result.stored_sequence, decode=not job.packed)
    packed = fetched.packed((layers, kv_heads), head_dim)
    if packed is not None:
        return Carried(result, packed=packed)
    k, v = fetched.dense((layers, kv_heads), head_dim)
    return Carried(result, k, v)


def _compress_one(request: _Request) -> Operation[compression_pb2.SequenceResult]:
    """The only sequence's result; its faults become the call's."""
    response = yield from rpc.call(rpc.COMPRESS_CACHE, request)
    result = response.results[0]
    if result.outcome in (compression_pb2.OUTCOME_APPLIED, compression_pb2.OUTCOME_NOOP):
        return result
    raise from_status(result.status)


def _check_rows(job: Job[Any], via: str) -> None:
    if job.lengths():
        raise KvernError(
            "FAILED_PRECONDITION",
            f"positions: rows hold different numbers of tokens, which only shared memory carries, "
            f"want a server on a Unix socket; got via {via}",
            field="positions",
        )
