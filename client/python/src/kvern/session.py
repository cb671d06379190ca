"""What a client remembers between calls, and the first steps of most operations."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from kvern import rpc
from kvern.errors import KvernError
from kvern.models import Model, ModelSpec
from kvern.rpc import Operation
from kvern.slabs import SlabCache
from kvern.v1 import compression_pb2, model_pb2, pool_pb2, server_pb2

ENGINES = {
    "": pool_pb2.ENGINE_UNSPECIFIED,
    "vllm": pool_pb2.ENGINE_VLLM,
    "sglang": pool_pb2.ENGINE_SGLANG,
    "trtllm": pool_pb2.ENGINE_TRTLLM,
    "llamacpp": pool_pb2.ENGINE_LLAMACPP,
    "transformers": pool_pb2.ENGINE_TRANSFORMERS,
    "other": pool_pb2.ENGINE_OTHER,
}
# What a server that was started anew does not know any more.
_STALE = ("POOL_EXPIRED", "ATTACHMENT_UNKNOWN", "MODEL_UNKNOWN")


@dataclass(frozen=True)
class Limits:
    """timeout: seconds of each call. max_slabs, max_slab_bytes: pooled memory that is kept."""

    timeout: float = 60.0
    connect_timeout: float = 5.0
    max_response_bytes: int = 64 << 20
    max_slabs: int = 8
    max_slab_bytes: int = 4 << 30


class Session:
    """Thread-safe: every member is replaced whole or has a lock of its own."""

    def __init__(self, address: str, limits: Limits, engine: str) -> None:
        if engine not in ENGINES:
            known = ", ".join(name for name in ENGINES if name)
            raise KvernError(
                "INVALID_ARGUMENT", f"engine: got '{engine}', want {known}", field="engine"
            )
        self.address = address
        self.limits = limits
        self.engine = ENGINES[engine]
        self.slabs = SlabCache(limits.max_slabs, limits.max_slab_bytes)
        self._lock = threading.Lock()
        self._info: server_pb2.GetServerInfoResponse | None = None
        self._models: dict[bytes, str] = {}
        self._forgotten: list[str] = []

    def info(self) -> Operation[server_pb2.GetServerInfoResponse]:
        """Asked once per server."""
        if self._info is None:
            self._info = yield from rpc.call(rpc.GET_SERVER_INFO, server_pb2.GetServerInfoRequest())
        return self._info

    def model_name(self, model: str | Model | ModelSpec) -> Operation[str]:
        """A spec is registered at its first use."""
        if isinstance(model, Model):
            return model.name
        if isinstance(model, str):
            return model if model.startswith("models/") else f"models/{model}"
        spec = model.to_proto()
        key = spec.SerializeToString(deterministic=True)
        if key not in self._models:
            request = model_pb2.RegisterModelRequest(model=model_pb2.Model(spec=spec))
            answer = yield from rpc.call(rpc.REGISTER_MODEL, request)
            self._models[key] = answer.model.name
        return self._models[key]

    def is_stale(self, error: KvernError) -> bool:
        """Whether the server may have been started anew; then all that it told is forgotten."""
        if error.reason not in _STALE:
            return False
        self._info = None
        self._models = {}
        self.slabs.clear()
        return True

    def forget_sequences(self, ids: Sequence[str], at_least: int) -> Operation[None]:
        """Tells the server when `at_least` ids have gathered; a server that is gone forgot them."""
        with self._lock:
            self._forgotten.extend(ids)
            if not self._forgotten or len(self._forgotten) < at_least:
                return
            gone, self._forgotten = self._forgotten, []
        request = compression_pb2.ReleaseSequencesRequest(sequence_ids=gone)
        try:
            yield from rpc.call(rpc.RELEASE_SEQUENCES, request)
        except KvernError:
            return

    def close(self) -> Operation[None]:
        """Ends the pools and forgets their sequences."""
        slabs = self.slabs.clear()
        for slab in slabs:
            if not slab.pool:
                continue
            request = pool_pb2.UnregisterPoolRequest(name=slab.pool)
            try:
                # The closed broker connection ends it too; asking ends it before this returns.
                yield from rpc.call(rpc.UNREGISTER_POOL, request)
            except KvernError:
                break
        yield from self.forget_sequences([slab.sequence_id for slab in slabs], at_least=1)
