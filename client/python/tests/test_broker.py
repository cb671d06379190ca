"""Answers of a broker that a real server gives to other users, or never."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import kvern
from kvern.broker import BrokerConnection, broker_paths


@contextlib.contextmanager
def broker(path: Path, answer: bytes, *, wait: bool) -> Iterator[None]:
    """Answers one connection, after its request or unasked, and closes it."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        connection, _ = listener.accept()
        if wait:
            _, files, _, _ = socket.recv_fds(connection, 64, 4)
            for file in files:
                socket.close(file)
        if answer:
            connection.send(answer)
        connection.close()

    thread = threading.Thread(target=serve)
    thread.start()
    yield
    thread.join()
    listener.close()


@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (struct.pack("<4sI16s", b"KVA1", 7, b""), "PERMISSION_DENIED"),
        (struct.pack("<4sI16s", b"KVA1", 8, b""), "RESOURCE_EXHAUSTED"),
        (struct.pack("<4sI16s", b"KVA1", 99, b""), "UNKNOWN"),
        (struct.pack("<4sI16s", b"KVB1", 0, b""), "UNAVAILABLE"),
        (b"KVA1", "UNAVAILABLE"),
        (b"", "UNAVAILABLE"),
    ],
)
def test_refusals(tmp_path: Path, answer: bytes, code: str, wait: bool) -> None:
    memory = kvern.SealedMemory(4096)
    with broker(tmp_path / "b.sock", answer, wait=wait):
        connection = BrokerConnection(["/nonexistent/b.sock", str(tmp_path / "b.sock")])
        with pytest.raises(kvern.KvernError) as caught:
            connection.attach(memory.fileno())
        connection.close()
    assert caught.value.code == code
    if code == "PERMISSION_DENIED":
        assert "user" in caught.value.next_step


def test_attachment_id(tmp_path: Path) -> None:
    answer = struct.pack("<4sI16s", b"KVA1", 0, bytes(range(16)))
    with broker(tmp_path / "b.sock", answer, wait=True):
        connection = BrokerConnection([str(tmp_path / "b.sock")])
        assert connection.attach(kvern.SealedMemory(4096).fileno()) == bytes(range(16))
        connection.close()


def test_where_a_broker_is_looked_for() -> None:
    named = "unix:/run/kvern/kvern.broker.sock"
    assert broker_paths("unix:/mnt/k.sock", named) == ["/mnt/k.broker.sock", named[5:]]
    assert broker_paths("unix:///run/kvern/kvern.sock", named) == [named[5:]]
    assert broker_paths("127.0.0.1:1", "") == []


def test_memory_is_sealed() -> None:
    memory = kvern.SealedMemory(8192)
    for size in (4096, 16384):
        with pytest.raises(PermissionError):
            os.ftruncate(memory.fileno(), size)
    assert memory.bytes.nbytes == 8192
