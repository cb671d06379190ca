"""The asyncio client: the methods of kvern.Client, performed on the event loop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from kvern import buffers, channel, compress, pool, registry, sequences, server, store
from kvern.aio_performer import AioPerformer
from kvern.arrays import Array, planes
from kvern.channel import Tls
from kvern.client import need_model
from kvern.errors import KvernError
from kvern.memory import SealedMemory
from kvern.models import Calibration, Model, ModelSpec
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
    """kvern.Client for asyncio: the same methods, awaited, with the same arguments and results.

    Use it as an asynchronous context manager, or close it. One client belongs to one event loop.
    Cancelling a method cancels its call; what the call left at the server is cleaned up before the
    method ends.
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
        self._session = Session(address, limits or Limits(), engine)
        self._model = model
        self._performer = AioPerformer(address, self._session.limits, tls)

    @property
    def address(self) -> str:
        return self._session.address

    async def connect(self) -> Client:
        """Errors: UNAVAILABLE/UNREACHABLE when no server answers in time."""
        try:
            await self._run(self._session.info(), self._session.limits.connect_timeout)
        except KvernError as error:
            await self._performer.close()
            raise channel.connect_error(error, self.address) from error
        return self

    async def close(self) -> None:
        """Ends the client's own pools at the server. Arrays of results stay good."""
        if not self._performer.closed:
            await self._run(self._session.close())
            await self._performer.close()

    async def __aenter__(self) -> Client:
        return await self.connect()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def compress(
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
        return await self._run(compress.compress(self._session, job), timeout)

    async def plan(
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
        return await self._run(compress.plan(self._session, job), timeout)

    async def new_cache(
        self,
        shape: Sequence[int],
        dtype: str,
        *,
        model: ModelLike | None = None,
        kind: str = "numpy",
    ) -> tuple[Any, Any]:
        model = self._model if model is None else model
        return await self._run(
            self._session.anew(lambda: buffers.new_cache(self._session, shape, dtype, model, kind))
        )

    async def info(self) -> ServerInfo:
        return await self._run(server.info())

    async def list_stages(self) -> Stages:
        return await self._run(server.stages())

    async def register_model(
        self, spec: ModelSpec, name: str = "", calibrations: Sequence[str] = ()
    ) -> Model:
        return await self._run(registry.register(spec, name, calibrations))

    async def get_model(self, name: str) -> Model:
        return await self._run(registry.get(name))

    async def list_models(self) -> Models:
        return await self._run(registry.listing())

    async def delete_model(self, name: str) -> None:
        await self._run(self._session.delete_model(name))

    async def import_calibration(self, artifact: bytes | str | Path) -> Calibration:
        return await self._run(registry.import_calibration(artifact))

    async def put_sequence(
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
        job = Job(
            k=planes("k", k, dtype),
            v=planes("v", v, dtype),
            policy=Policy(),
            model=self._model if model is None else model,
            inputs=inputs or Inputs(),
        )
        return await self._run(
            self._session.anew(lambda: store.put_sequence(self._session, name, job)), timeout
        )

    async def append_sequence(
        self,
        name: str,
        k: Array | Sequence[Array],
        v: Array | Sequence[Array],
        *,
        epoch: int,
        positions: Any = None,
        dtype: str | None = None,
    ) -> StoredSequence:
        parts = planes("k", k, dtype), planes("v", v, dtype)
        return await self._run(store.append(name, *parts, epoch, positions))

    async def fetch_sequence(
        self, name: str, *, packed: bool = False, kind: str = "numpy", timeout: float | None = None
    ) -> FetchedSequence:
        return await self._run(store.fetch_sequence(self._session, name, packed, kind), timeout)

    async def get_sequence(self, name: str) -> StoredSequence:
        return await self._run(store.get(name))

    async def list_sequences(self) -> tuple[StoredSequence, ...]:
        return await self._run(store.listing())

    async def delete_sequence(self, name: str) -> None:
        await self._run(store.delete(name))

    async def register_pool(
        self, memory: SealedMemory, spec: PoolSpec, *, model: ModelLike | None = None
    ) -> Pool:
        chosen = self._need_model(model)
        return await self._run(
            self._session.anew(lambda: pool.register(self._session, memory, spec, chosen))
        )

    async def unregister_pool(self, registered: Pool) -> None:
        await self._run(pool.unregister(registered))

    async def list_pools(self) -> tuple[str, ...]:
        return await self._run(pool.names())

    async def compress_sequences(
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
        cohort = Cohort(
            model=self._need_model(model),
            sequences=members,
            policy=policy,
            placement=placement,
            with_kept=with_kept,
            validate_only=validate_only,
            request_id=request_id,
        )
        return await self._run(
            self._session.anew(lambda: sequences.compress(self._session, cohort)), timeout
        )

    async def release_sequences(self, ids: Sequence[str]) -> int:
        return await self._run(sequences.release(ids))

    def _need_model(self, model: ModelLike | None) -> ModelLike:
        return need_model(self._model if model is None else model)

    async def _run(self, operation: Operation[T], timeout: float | None = None) -> T:
        limit = self._session.limits.timeout if timeout is None else timeout
        return await self._performer.run(operation, limit)
