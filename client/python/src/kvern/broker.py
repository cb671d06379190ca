"""The handle broker: gives the server memory, and is the sign that its owner lives.

The protocol stands in docs/memory.md.
"""

from __future__ import annotations

import contextlib
import socket
import struct

import grpc

from kvern.errors import KvernError

_MAGIC = b"KVA1"
_REPLY = struct.Struct("<4sI16s")  # magic, status, attachment id
_TIMEOUT_SECONDS = 10.0
_CODE_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}


class BrokerConnection:
    """When it closes, the server expires every pool over what was attached through it."""

    def __init__(self, paths: list[str]) -> None:
        """Connects to the first path that answers. Errors: UNAVAILABLE; FAILED_PRECONDITION/
        BROKER_MISSING for no paths."""
        if not paths:
            raise KvernError(
                "FAILED_PRECONDITION",
                "pool: this server has no handle broker, want a server on a Unix socket",
                reason="BROKER_MISSING",
            )
        failure: OSError | None = None
        for path in paths:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            connection.settimeout(_TIMEOUT_SECONDS)
            try:
                connection.connect(path)
            except OSError as error:
                connection.close()
                failure = error
                continue
            except BaseException:
                connection.close()
                raise
            self._socket = connection
            return
        raise _gone(f"no handle broker answers at '{paths[-1]}': {failure}")

    def attach(self, fd: int) -> bytes:
        """The 16-byte id that RegisterPool names. The descriptor stays the caller's. Errors: the
        broker's code; UNAVAILABLE when the connection broke."""
        try:
            # A broker that does not let this user in says so unasked, and closes: read it anyway.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                socket.send_fds(self._socket, [_MAGIC], [fd])
            try:
                answer = self._socket.recv(_REPLY.size)
            except ConnectionResetError:  # told once, before the answer that came ahead of it
                answer = self._socket.recv(_REPLY.size)
        except OSError as error:
            raise _gone(f"handle broker: {error}") from error
        if len(answer) != _REPLY.size or not answer.startswith(_MAGIC):
            raise _gone(f"handle broker: got {len(answer)} bytes, want {_REPLY.size}")
        _, status, attachment_id = _REPLY.unpack(answer)
        if status != 0:
            raise KvernError(
                _CODE_NAMES.get(status, "UNKNOWN"),
                "handle broker: the server refused the memory",
            )
        return bytes(attachment_id)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.close()


def _gone(message: str) -> KvernError:
    """Without its broker a server is not there, or not for this user."""
    return KvernError("UNAVAILABLE", message, reason="UNREACHABLE")


def broker_paths(server_address: str, broker_address: str) -> list[str]:
    """Where the broker may listen: beside the socket that was dialled, which a container may see
    under another name, then where the server says. Empty: this server has none."""
    named = broker_address.removeprefix("unix:")
    if not named:
        return []
    paths = []
    if server_address.startswith("unix:") and server_address.endswith(".sock"):
        dialled = server_address.removeprefix("unix:").removeprefix("//")
        paths.append(dialled.removesuffix(".sock") + ".broker.sock")
    if named not in paths:
        paths.append(named)
    return paths
