"""TLS over TCP, with a certificate for the client too."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Cache, Server

import kvern


def certificate(directory: Path, name: str) -> tuple[str, str]:
    key, cert = str(directory / f"{name}.key"), str(directory / f"{name}.pem")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += [
        "-nodes",
        "-days",
        "2",
        "-subj",
        f"/CN={name}",
        "-addext",
        "subjectAltName=IP:127.0.0.1",
    ]
    subprocess.run([*command, "-keyout", key, "-out", cert], check=True, capture_output=True)
    return key, cert


def test_mutual_tls(own_server: Callable[..., Server], cache: Cache, tmp_path: Path) -> None:
    key, cert = certificate(tmp_path, "server")
    client_key, client_cert = certificate(tmp_path, "client")
    flags = ["--tls-cert", cert, "--tls-key", key, "--tls-client-ca", client_cert]
    server = own_server(*flags)
    tls = kvern.Tls(ca=cert, certificate=client_cert, key=client_key)
    with kvern.Client(server.tcp_address, tls=tls) as client:
        assert client.compress(*cache, "evict50").outcome == "applied"
    for wrong in (None, kvern.Tls(ca=cert), kvern.Tls(ca=client_cert)):
        with pytest.raises(kvern.KvernError) as caught:
            kvern.Client(server.tcp_address, tls=wrong)
        assert caught.value.reason == "UNREACHABLE"
