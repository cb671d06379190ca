"""From one cache to a smaller one: picks how the bytes travel, and gives the result one form."""

from __future__ import annotations

from typing import Any

import numpy as np

from kvern import request as requests
from kvern import results, transports
from kvern.arrays import Array
from kvern.errors import KvernError
from kvern.request import Job
from kvern.rpc import Operation
from kvern.session import Session
from kvern.transports import Carried
from kvern.v1 import compression_pb2, server_pb2, types_pb2

_WAYS = {
    "pool": transports.through_pool,
    "inline": transports.inline,
    "store": transports.through_store,
}


def compress(session: Session, job: Job[Array]) -> Operation[results.CompressResult[Array]]:
    carried, via = yield from session.anew(lambda: _carry(session, job))
    kv, shared = None, carried.shared
    if carried.packed is None:
        raw = [carried.k, carried.v]
        if raw[0] is None or raw[1] is None:  # nothing was dropped, so nothing came back
            raw = [job.k.stacked(), job.v.stacked()]
            raw = [plane.copy() for plane in raw if plane is not None] if job.copy else raw
        assert raw[0] is not None and raw[1] is not None
        kv = (job.k.result(raw[0]), job.v.result(raw[1]))
    return results.CompressResult(
        **_plan_facts(job, carried.result), via=via, shared=shared, packed=carried.packed, kv=kv
    )


def plan(session: Session, job: Job[Any]) -> Operation[results.Plan]:
    carried, _ = yield from session.anew(lambda: _carry(session, job))
    return results.Plan(**_plan_facts(job, carried.result))


def _carry(session: Session, job: Job[Any]) -> Operation[tuple[Carried, str]]:
    info = yield from session.info()
    model = yield from session.model(job.model_or_shape())
    request = requests.to_proto(job, model.name)
    via = job.via
    if via == "auto":
        via = _choose(session, job, info, request.policy)
    return (yield from _WAYS[via](session, job, request)), via


def _choose(
    session: Session,
    job: Job[Any],
    info: server_pb2.GetServerInfoResponse,
    policy: types_pb2.Policy,
) -> str:
    if session.address.startswith("unix:") and info.broker_address:
        return "pool"
    fits = job.cache_bytes <= info.limits.get("inline-bytes", 0)
    as_it_comes = job.packed or job.plan or not transports.expects_packed(policy)
    return "inline" if fits and as_it_comes else "store"


def _plan_facts(job: Job[Any], result: compression_pb2.SequenceResult) -> dict[str, Any]:
    layers, kv_heads, tokens, _ = job.k.shape
    facts = results.facts(result, (layers, kv_heads), results.chain(result.resolved))
    counts = facts["kept_counts"]
    slots = int(counts.max()) if counts.size else 0
    kept = np.frombuffer(result.kept, "<i4")
    positions = np.frombuffer(result.positions, "<i4")
    if kept.size != layers * kv_heads * slots or positions.size != kept.size:
        raise KvernError(
            "INTERNAL",
            f"the server's answer does not fit itself: got {kept.size} indices and "
            f"{positions.size} positions, want {layers * kv_heads * slots} as its counts say",
        )
    scores = None
    if job.with_scores:
        scores = np.frombuffer(result.scores, "<f4").reshape(layers, kv_heads, tokens)
    facts["kept_indices"] = kept.reshape(layers, kv_heads, slots)
    facts["positions"] = positions.reshape(layers, kv_heads, slots)
    facts["scores"] = scores
    if not job.k.has_layers_axis:
        for name in ("kept_counts", "kept_indices", "positions", "scores"):
            facts[name] = None if facts[name] is None else facts[name][0]
    return facts
