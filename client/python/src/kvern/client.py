"""The client: every method is an operation, performed in the calling thread."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, TypeVar

import grpc

from kvern import channel, compress, rpc
from kvern.arrays import Array, planes
from kvern.channel import Tls
from kvern.errors import KvernError
from kvern.models import Model, ModelSpec
from kvern.policy import Policy, as_policy
from kvern.request import Inputs, Job
from kvern.results import CompressResult, Plan
from kvern.rpc import Operation
from kvern.session import Limits, Session

T = TypeVar("T")
ModelLike = str | Model | ModelSpec


class Client:
    """A connection to a Kvern server. Thread-safe; close it, or use it as a context manager.

    address: ``unix:PATH`` or ``HOST:PORT``. model: of calls that name none. engine: a label of the
    server's metrics: vllm, sglang, trtllm, llamacpp, transformers or other. Every error is a
    KvernError; of this constructor UNAVAILABLE/UNREACHABLE when no server answers in time.
    """

    def __init__(
        self,
        address: str,
        *,
        limits: Limits | None = None,
        model: ModelLike | None = None,
        tls: Tls | None = None,
        engine: str = "",
    ) -> None:
        limits = limits or Limits()
        self._session = Session(address, limits, engine)
        self._model = model
        self._performer = _Performer(address, limits, tls)
        try:
            self._run(self._session.info(), timeout=limits.connect_timeout)
        except KvernError as error:
            self._performer.close()
            raise channel.connect_error(error, address) from error

    @property
    def address(self) -> str:
        return self._session.address

    def close(self) -> None:
        """Ends pools at the server. Arrays of results stay good."""
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
        dtype="bf16"). policy: a Policy or a preset's name, by default ``balanced``. model: a spec,
        a registered Model or its name; by default the client's, else the geometry of k with unknown
        RoPE. inputs: what else is known of the cache.

        via: ``auto`` (shared memory on a Unix socket, else in the message, else the store),
        ``pool``, ``inline`` or ``store``. packed: answer what the codecs made instead of what
        decoding it gives. copy: k and v of the result are memory of their own, never views of
        shared memory or of the arguments. with_scores: answer scores too. timeout: seconds of each
        call to the server.
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

    def _run(self, operation: Operation[T], timeout: float | None = None) -> T:
        limit = self._session.limits.timeout if timeout is None else timeout
        try:
            effect = next(operation)
            while True:
                try:
                    value = self._performer.perform(effect, limit)
                except BaseException as error:
                    effect = operation.throw(error)
                else:
                    effect = operation.send(value)
        except StopIteration as done:
            result: T = done.value
            return result


class _Performer:
    """Does what an operation asks for."""

    def __init__(self, address: str, limits: Limits, tls: Tls | None) -> None:
        self._address = address
        options = channel.options(limits)
        if tls is None:
            self._channel = grpc.insecure_channel(address, options)
        else:
            self._channel = grpc.secure_channel(address, tls.credentials(), options)
        self.closed = False

    def close(self) -> None:
        self.closed = True
        self._channel.close()

    def perform(self, effect: rpc.Effect, timeout: float) -> Any:
        if self.closed:
            raise channel.closed()
        if isinstance(effect, rpc.Work):
            return effect.run()
        try:
            return self._call(effect, timeout)
        except grpc.RpcError as error:
            raise channel.call_error(error, self._address) from None

    def _call(self, effect: rpc.Unary | rpc.Upload | rpc.Download, timeout: float) -> Any:
        method = effect.method
        decode = method.response.FromString
        if isinstance(effect, rpc.Unary):
            unary = self._channel.unary_unary(method.path, _encode, decode)
            return unary(effect.request, timeout=timeout)
        if isinstance(effect, rpc.Upload):
            upload = self._channel.stream_unary(method.path, _encode, decode)
            return upload(iter(effect.messages()), timeout=timeout)
        stream = self._channel.unary_stream(method.path, _encode, decode)(
            effect.request, timeout=timeout
        )
        try:
            for message in stream:
                effect.take(message)
        except BaseException:
            stream.cancel()
            raise
        return None


def _encode(message: rpc.Message) -> bytes:
    return message.SerializeToString()
