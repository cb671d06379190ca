"""The client: every method is an operation, performed in the calling thread."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from kvern import buffers, channel, compress, pool, registry, sequences, server, store
from kvern.arrays import Array, planes
from kvern.channel import Tls
from kvern.errors import KvernError
from kvern.memory import SealedMemory
from kvern.models import Calibration, Model, ModelSpec
from kvern.performer import Performer
from kvern.policy import Policy, as_policy
from kvern.pool import Pool, PoolSpec
from kvern.registry import Models
from kvern.request import Inputs, Job
from kvern.results import CompressResult, Plan, SequenceResult
from kvern.rpc import Operation
from kvern.sequences import Cohort, PagedSequence, StoreSequence
from kvern.server import ServerInfo, Stages
from kvern.session import Limits, ModelLike, Session
from kvern.store import FetchedSequence, StoredSequence

T = TypeVar("T")


class Client:
    """A connection to a Kvern server. Thread-safe; close it, or use it as a context manager.

    address: ``unix:PATH`` or ``HOST:PORT``. model: of calls that name none. engine: a label of the
    server's metrics: vllm, sglang, trtllm, llamacpp, transformers or other. Every error is a
    KvernError; of this constructor UNAVAILABLE/UNREACHABLE when no server answers in time.

    Where a method takes a model: a ModelSpec, which is registered at its first use, a Model, or the
    name of a registered one. timeout: seconds of each call to the server.
    """

    def __init__(
        self,
        address: str,
        *,
        model: ModelLike | None = None,
        limits: Limits | None = None,
        tls: Tls | None = None,
        engine: str = "",
    ) -> None:
        limits = limits or Limits()
        self._session = Session(address, limits, engine)
        self._model = model
        self._performer = Performer(address, limits, tls)
        try:
            self._run(self._session.info(), limits.connect_timeout)
        except KvernError as error:
            self._performer.close()
            raise channel.connect_error(error, address) from error

    @property
    def address(self) -> str:
        return self._session.address

    def close(self) -> None:
        """Ends the client's own pools at the server. Arrays of results stay good."""
        if not self._performer.closed:
            self._run(self._session.close())
            self._performer.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def compress(
        self,
        k: Array | Sequence[Array],
        v: Array | Sequence[Array],
        policy: Policy | str | None = None,
        *,
        model: ModelLike | None = None,
        inputs: Inputs | None = None,
        dtype: str | None = None,
        via: str = "auto",
        packed: bool = False,
        copy: bool = False,
        with_scores: bool = False,
        timeout: float | None = None,
    ) -> CompressResult[Array]:
        """Scores the tokens of a cache and keeps those worth keeping.

        k, v: keys after RoPE and values, [kv_heads, tokens, head_dim] or
        [layers, kv_heads, tokens, head_dim], or a sequence of the former, one per layer: numpy, or
        torch on the CPU; f32, f16 or bf16 (ml_dtypes.bfloat16, torch.bfloat16, or uint16 with
        dtype="bf16"). policy: a Policy or a preset's name, by default ``balanced``. model: by
        default the client's, else the geometry of k with unknown RoPE. inputs: what else is known
        of the cache.

        via: ``auto`` (shared memory on a Unix socket, else in the message, else the store),
        ``pool``, ``inline`` or ``store``. packed: answer what the codecs made instead of what
        decoding it gives. copy: k and v of the result are memory of their own, never views of
        shared memory or of the arguments. with_scores: answer scores too.
        """
        job = Job(
            k=planes("k", k, dtype),
            v=planes("v", v, dtype),
            policy=as_policy(policy),
            model=self._model if model is None else model,
            via=via,
            packed=packed,
            copy=copy,
            with_scores=with_scores,
            inputs=inputs or Inputs(),
        )
        return self._run(compress.compress(self._session, job), timeout)

    def plan(
        self,
        k: Array | Sequence[Array],
        v: Array | Sequence[Array],
        policy: Policy | str | None = None,
        *,
        model: ModelLike | None = None,
        inputs: Inputs | None = None,
        dtype: str | None = None,
        via: str = "auto",
        with_scores: bool = False,
        timeout: float | None = None,
    ) -> Plan:
        """What compress would keep, and the bytes it would take; nothing moves."""
        job = Job(
            k=planes("k", k, dtype),
            v=planes("v", v, dtype),
            policy=as_policy(policy),
            model=self._model if model is None else model,
            via=via,
            with_scores=with_scores,
            plan=True,
            inputs=inputs or Inputs(),
        )
        return self._run(compress.plan(self._session, job), timeout)

    def new_cache(
        self,
        shape: Sequence[int],
        dtype: str,
        *,
        model: ModelLike | None = None,
        kind: str = "numpy",
    ) -> tuple[Any, Any]:
        """Zeroed k and v in shared memory, which compress reads where they lie.

        shape: [kv_heads, tokens, head_dim] or [layers, kv_heads, tokens, head_dim]. dtype: f32, f16
        or bf16. kind: ``numpy`` or ``torch``. Give compress the same model. The memory lives as
        long as the arrays do; while an earlier result of the same cache is in use, compress copies.
        """
        model = self._model if model is None else model
        return self._run(
            self._session.anew(lambda: buffers.new_cache(self._session, shape, dtype, model, kind))
        )

    def info(self) -> ServerInfo:
        """Version, backend, limits."""
        return self._run(server.info())

    def list_stages(self) -> Stages:
        """Everything that a policy may name."""
        return self._run(server.stages())

    def register_model(
        self, spec: ModelSpec, name: str = "", calibrations: Sequence[str] = ()
    ) -> Model:
        """An empty name is derived from the spec. calibrations: the model's defaults."""
        return self._run(registry.register(spec, name, calibrations))

    def get_model(self, name: str) -> Model:
        return self._run(registry.get(name))

    def list_models(self) -> Models:
        return self._run(registry.listing())

    def delete_model(self, name: str) -> None:
        """Unknown names succeed. Errors: FAILED_PRECONDITION/MODEL_IN_USE."""
        self._run(self._session.delete_model(name))

    def import_calibration(self, artifact: bytes | str | Path) -> Calibration:
        """A path, or the bytes of a file; its name goes into Policy(calibrations=...) or
        register_model. What the server has is not sent again."""
        return self._run(registry.import_calibration(artifact))

    def put_sequence(
        self,
        name: str,
        k: Array | Sequence[Array],
        v: Array | Sequence[Array],
        *,
        model: ModelLike | None = None,
        inputs: Inputs | None = None,
        dtype: str | None = None,
        timeout: float | None = None,
    ) -> StoredSequence:
        """Stores a cache, with the positions, logical_tokens and layer_indices of inputs.

        Errors: ALREADY_EXISTS; RESOURCE_EXHAUSTED when it does not fit.
        """
        job = Job(
            k=planes("k", k, dtype),
            v=planes("v", v, dtype),
            policy=Policy(),
            model=self._model if model is None else model,
            inputs=inputs or Inputs(),
        )
        return self._run(
            self._session.anew(lambda: store.put_sequence(self._session, name, job)), timeout
        )

    def append_sequence(
        self,
        name: str,
        k: Array | Sequence[Array],
        v: Array | Sequence[Array],
        *,
        epoch: int,
        positions: Any = None,
        dtype: str | None = None,
    ) -> StoredSequence:
        """Appends tokens to a sequence that no codec packed. epoch: as the caller knows it.

        Errors: ABORTED/EPOCH_MISMATCH; FAILED_PRECONDITION/SEQUENCE_PACKED.
        """
        parts = planes("k", k, dtype), planes("v", v, dtype)
        return self._run(store.append(name, *parts, epoch, positions))

    def fetch_sequence(
        self, name: str, *, packed: bool = False, kind: str = "numpy", timeout: float | None = None
    ) -> FetchedSequence:
        """packed: as its codecs made it, instead of what decoding gives. kind: of k and v,
        ``numpy`` or ``torch``. Errors: NOT_FOUND/SEQUENCE_UNKNOWN."""
        return self._run(store.fetch_sequence(self._session, name, packed, kind), timeout)

    def get_sequence(self, name: str) -> StoredSequence:
        return self._run(store.get(name))

    def list_sequences(self) -> tuple[StoredSequence, ...]:
        return self._run(store.listing())

    def delete_sequence(self, name: str) -> None:
        """Its memory is zeroed. Unknown names succeed."""
        self._run(store.delete(name))

    def register_pool(
        self, memory: SealedMemory, spec: PoolSpec, *, model: ModelLike | None = None
    ) -> Pool:
        """Shares an engine's paged memory; close the pool, or use it as a context manager."""
        chosen = self._need_model(model)
        return self._run(
            self._session.anew(lambda: pool.register(self._session, memory, spec, chosen))
        )

    def unregister_pool(self, registered: Pool) -> None:
        """Ends a pool before it returns; running calls finish."""
        self._run(pool.unregister(registered))

    def list_pools(self) -> tuple[str, ...]:
        return self._run(pool.names())

    def compress_sequences(
        self,
        members: Sequence[PagedSequence | StoreSequence],
        policy: Policy | str | None = None,
        *,
        model: ModelLike | None = None,
        placement: str = "",
        with_kept: bool = False,
        validate_only: bool = False,
        request_id: str = "",
        timeout: float | None = None,
    ) -> tuple[SequenceResult, ...]:
        """One step of an engine: paged and stored sequences of one model, no cache bytes sent.

        placement: ``copy_to``, ``compact``, ``indices_only`` or ``to_store``; by default copy_to of
        paged sequences and to_store of stored ones. with_kept: answer kept_indices and positions.
        request_id: asked twice within 60 s it is run once. Faults of one sequence stand in its
        result.
        """
        cohort = Cohort(
            model=self._need_model(model),
            sequences=members,
            policy=policy,
            placement=placement,
            with_kept=with_kept,
            validate_only=validate_only,
            request_id=request_id,
        )
        return self._run(
            self._session.anew(lambda: sequences.compress(self._session, cohort)), timeout
        )

    def release_sequences(self, ids: Sequence[str]) -> int:
        """The server forgets paged sequences, and may evict stored ones; how many it knew."""
        return self._run(sequences.release(ids))

    def _need_model(self, model: ModelLike | None) -> ModelLike:
        return need_model(self._model if model is None else model)

    def _run(self, operation: Operation[T], timeout: float | None = None) -> T:
        limit = self._session.limits.timeout if timeout is None else timeout
        return self._performer.run(operation, limit)


def need_model(model: ModelLike | None) -> ModelLike:
    """Block ids say nothing of a cache's geometry. Errors: INVALID_ARGUMENT."""
    if model is None:
        raise KvernError(
            "INVALID_ARGUMENT", "model: got none, want one here or at the client", field="model"
        )
    return model
