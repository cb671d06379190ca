"""What a client remembers between calls, and the first steps of most operations."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from kvern import registry, rpc
from kvern.errors import KvernError
from kvern.models import Model, ModelSpec
from kvern.rpc import Operation
from kvern.slabs import Slab, SlabCache
from kvern.v1 import compression_pb2, pool_pb2, server_pb2, store_pb2

ENGINES = {
    "": pool_pb2.ENGINE_UNSPECIFIED,
    "vllm": pool_pb2.ENGINE_VLLM,
    "sglang": pool_pb2.ENGINE_SGLANG,
    "trtllm": pool_pb2.ENGINE_TRTLLM,
    "llamacpp": pool_pb2.ENGINE_LLAMACPP,
    "transformers": pool_pb2.ENGINE_TRANSFORMERS,
    "other": pool_pb2.ENGINE_OTHER,
}
T = TypeVar("T")
# Names of results that could not be deleted; a server that is gone needs none of them.
_MAX_DOUBTFUL = 256
ModelLike = str | Model | ModelSpec


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
        self._models: dict[str | ModelSpec, Model] = {}
        self._forgotten: list[str] = []
        self._doubtful: list[str] = []

    def info(self) -> Operation[server_pb2.GetServerInfoResponse]:
        """Asked once per server."""
        if self._info is None:
            self._info = yield from rpc.call(rpc.GET_SERVER_INFO, server_pb2.GetServerInfoRequest())
        return self._info

    def model(self, model: ModelLike) -> Operation[Model]:
        """A spec is registered, and a name looked up, at its first use."""
        if isinstance(model, Model):
            return model
        if model not in self._models:
            if isinstance(model, str):
                self._models[model] = yield from registry.get(model)
            else:
                self._models[model] = yield from registry.register(model, "", ())
        return self._models[model]

    def anew(self, begin: Callable[[], Operation[T]]) -> Operation[T]:
        """Runs an operation, and again when the server was started anew since it was last asked:
        then it knows neither the models nor the pools that this client registered."""
        for _ in range(2):
            try:
                return (yield from begin())
            except KvernError as error:
                if error.reason == "MODEL_UNKNOWN":
                    self._models = {}
                elif error.reason in ("POOL_EXPIRED", "ATTACHMENT_UNKNOWN"):
                    self.slabs.clear()
                else:
                    raise
                self._info = None
        return (yield from begin())

    def forget_sequences(
        self, ids: Sequence[str], *, at_least: int, again: bool = False
    ) -> Operation[None]:
        """Tells the server when `at_least` ids have gathered; one that is gone forgot them.

        again: their call was cut short, and the server may be about to remember them: they are told
        once more with a later batch.
        """
        with self._lock:
            self._forgotten.extend(ids)
            gone = list(self._forgotten)
        if not gone or len(gone) < at_least:
            return
        request = compression_pb2.ReleaseSequencesRequest(sequence_ids=gone)
        with contextlib.suppress(KvernError):
            yield from rpc.clean_up(rpc.RELEASE_SEQUENCES, request)
        with self._lock:
            told = set(gone) - set(ids if again else ())
            self._forgotten = [name for name in self._forgotten if name not in told]

    def doubt(self, name: str) -> None:
        """A call that was cut short may have left this in the store, or be about to; its name is
        not used again. It is deleted when the next call ends, or the client closes."""
        with self._lock:
            self._doubtful = [*self._doubtful[1 - _MAX_DOUBTFUL :], name]

    def delete_stored(self, name: str = "") -> Operation[bool]:
        """Takes a call's result, and those in doubt, out of the store; answers whether that worked.

        Failing must not hide why the caller does.
        """
        with self._lock:
            names = [*self._doubtful, *([name] if name else [])]
        try:
            for stored in names:
                request = store_pb2.DeleteSequenceRequest(name=stored)
                yield from rpc.clean_up(rpc.DELETE_SEQUENCE, request)
        except KvernError:
            return False
        with self._lock:
            self._doubtful = [other for other in self._doubtful if other not in names]
        return True

    def delete_model(self, name: str) -> Operation[None]:
        """This client's own idle pools do not stand in the way."""
        full = registry.full_name(name)
        yield from self._end_pools(self.slabs.drop_idle(full))
        self._models = {key: model for key, model in self._models.items() if model.name != full}
        yield from registry.delete(full)

    def close(self) -> Operation[None]:
        """Ends the pools and forgets their sequences."""
        yield from self._end_pools(self.slabs.clear())
        yield from self.delete_stored()

    def _end_pools(self, slabs: Sequence[Slab]) -> Operation[None]:
        for slab in slabs:
            if not slab.pool:
                continue
            request = pool_pb2.UnregisterPoolRequest(name=slab.pool)
            # The closed broker connection ends it too; asking ends it before this returns.
            with contextlib.suppress(KvernError):
                yield from rpc.clean_up(rpc.UNREGISTER_POOL, request)
        yield from self.forget_sequences([slab.sequence_id for slab in slabs], at_least=1)
