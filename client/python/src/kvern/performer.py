"""Performs operations in the calling thread."""

from __future__ import annotations

from typing import Any, TypeVar

import grpc

from kvern import channel, rpc
from kvern.channel import Tls
from kvern.rpc import Operation
from kvern.session import Limits

T = TypeVar("T")


class Performer:
    """Does what operations ask for. Thread-safe."""

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

    def run(self, operation: Operation[T], timeout: float) -> T:
        """timeout: seconds of each call."""
        try:
            effect = next(operation)
            while True:
                try:
                    value = self._perform(effect, timeout)
                except BaseException as error:
                    effect = operation.throw(error)
                else:
                    effect = operation.send(value)
        except StopIteration as done:
            result: T = done.value
            return result

    def _perform(self, effect: rpc.Effect, timeout: float) -> Any:
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
            unary = self._channel.unary_unary(method.path, encode, decode)
            return unary(effect.request, timeout=effect.timeout or timeout)
        if isinstance(effect, rpc.Upload):
            upload = self._channel.stream_unary(method.path, encode, decode)
            return upload(effect.messages(), timeout=timeout)
        stream = self._channel.unary_stream(method.path, encode, decode)(
            effect.request, timeout=timeout
        )
        try:
            for message in stream:
                effect.take(message)
        except BaseException:
            stream.cancel()
            raise
        return None


def encode(message: rpc.Message) -> bytes:
    return message.SerializeToString()
