"""What both clients share of gRPC: options, credentials, errors of a connection."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from kvern.errors import KvernError, from_grpc, invalid
from kvern.session import Limits

# Room for framing and the fields that the server's own limit does not count.
_RESPONSE_SLACK_BYTES = 1 << 20


@dataclass(frozen=True)
class Tls:
    """PEM files of a TLS connection over TCP.

    ca: whom to trust. certificate, key: the client's own, for servers that ask for one.
    """

    ca: str = ""
    certificate: str = ""
    key: str = ""

    def credentials(self) -> grpc.ChannelCredentials:
        """Errors: INVALID_ARGUMENT for a file that cannot be read."""
        return grpc.ssl_channel_credentials(
            _read("tls.ca", self.ca),
            _read("tls.key", self.key),
            _read("tls.certificate", self.certificate),
        )


def options(limits: Limits) -> list[tuple[str, Any]]:
    return [
        ("grpc.max_receive_message_length", limits.max_response_bytes + _RESPONSE_SLACK_BYTES),
        ("grpc.max_send_message_length", -1),
        # Each client has its own connection, and a server that comes back is found soon.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2000),
        ("grpc.enable_http_proxy", 0),
    ]


def call_error(error: grpc.RpcError, address: str) -> KvernError:
    """A failed call; a connection that failed says which server is gone."""
    got = from_grpc(error)
    if got.code == "UNAVAILABLE" and not has_details(error):
        return unreachable(f"the server at '{address}' went away: {got.message}")
    return got


def connect_error(error: KvernError, address: str) -> KvernError:
    """The first call of a client failed."""
    if error.reason == "UNREACHABLE" or error.code == "DEADLINE_EXCEEDED":
        return unreachable(f"no server answers at '{address}'")
    return error


def unreachable(message: str) -> KvernError:
    return KvernError("UNAVAILABLE", message, reason="UNREACHABLE")


def closed() -> KvernError:
    return KvernError("FAILED_PRECONDITION", "client: got a call after close()", reason="CLOSED")


def has_details(error: Any) -> bool:
    """Whether the server said it, and not this machine's gRPC."""
    return any(key == "grpc-status-details-bin" for key, _ in error.trailing_metadata() or ())


def _read(field: str, path: str) -> bytes | None:
    if not path:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise invalid(field, f"{field}: '{path}' cannot be read: {error}") from error
