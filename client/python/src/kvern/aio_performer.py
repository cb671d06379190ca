"""Performs operations on the event loop; what blocks runs in a thread."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, TypeVar

import grpc
import grpc.aio

from kvern import channel, rpc
from kvern.channel import Tls
from kvern.errors import KvernError
from kvern.performer import encode
from kvern.rpc import Operation
from kvern.session import Limits

T = TypeVar("T")


class AioPerformer:
    """Does what operations ask for, on the loop of its first call."""

    def __init__(self, address: str, limits: Limits, tls: Tls | None) -> None:
        self._address = address
        self._options = channel.options(limits)
        self._credentials = None if tls is None else tls.credentials()
        self._channel: grpc.aio.Channel | None = None
        self.closed = False

    async def close(self) -> None:
        self.closed = True
        if self._channel is not None:
            await self._channel.close()

    async def run(self, operation: Operation[T], timeout: float) -> T:
        """timeout: seconds of each call."""
        cut_short = False
        try:
            effect = next(operation)
            while True:
                try:
                    perform = self._clean_up if cut_short else self._perform
                    value = await perform(effect, timeout)
                except BaseException as error:
                    cut_short = cut_short or not isinstance(error, KvernError)
                    effect = operation.throw(error)
                else:
                    effect = operation.send(value)
        except StopIteration as done:
            result: T = done.value
            return result

    async def _clean_up(self, effect: rpc.Effect, timeout: float) -> Any:
        """Goes on when the task is cancelled once more: that it will end is settled already."""
        task = asyncio.ensure_future(self._perform(effect, timeout))
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.shield(task)
        return task.result()

    async def _perform(self, effect: rpc.Effect, timeout: float) -> Any:
        if self.closed:
            raise channel.closed()
        if isinstance(effect, rpc.Work):
            return await asyncio.to_thread(effect.run)
        try:
            return await self._call(effect, timeout)
        except grpc.aio.AioRpcError as error:
            raise channel.call_error(error, self._address) from None

    async def _call(self, effect: rpc.Unary | rpc.Upload | rpc.Download, timeout: float) -> Any:
        connection = self._connection()
        method = effect.method
        decode = method.response.FromString
        if isinstance(effect, rpc.Unary):
            unary = connection.unary_unary(method.path, encode, decode)
            return await unary(effect.request, timeout=effect.timeout or timeout)
        if isinstance(effect, rpc.Upload):
            upload = connection.stream_unary(method.path, encode, decode)
            return await upload(effect.messages(), timeout=timeout)
        stream = connection.unary_stream(method.path, encode, decode)(
            effect.request, timeout=timeout
        )
        try:
            async for message in stream:
                effect.take(message)
        except BaseException:
            stream.cancel()
            raise
        return None

    def _connection(self) -> grpc.aio.Channel:
        """A channel belongs to a running loop, so it is made late."""
        if self._channel is None:
            if self._credentials is None:
                self._channel = grpc.aio.insecure_channel(self._address, self._options)
            else:
                self._channel = grpc.aio.secure_channel(
                    self._address, self._credentials, self._options
                )
        return self._channel
