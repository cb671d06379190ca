"""Models and calibrations at the server."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kvern import rpc
from kvern.errors import KvernError
from kvern.models import Calibration, Model, ModelSpec
from kvern.rpc import Operation
from kvern.v1 import model_pb2

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Models:
    """All that is registered, by name."""

    models: tuple[Model, ...]
    calibrations: tuple[Calibration, ...]


def full_name(name: str) -> str:
    return name if not name or name.startswith("models/") else f"models/{name}"


def register(spec: ModelSpec, name: str, calibrations: Sequence[str]) -> Operation[Model]:
    model = model_pb2.Model(
        name=full_name(name), spec=spec.to_proto(), calibrations=list(calibrations)
    )
    request = model_pb2.RegisterModelRequest(model=model)
    return Model.from_proto((yield from rpc.call(rpc.REGISTER_MODEL, request)).model)


def get(name: str) -> Operation[Model]:
    request = model_pb2.GetModelRequest(name=full_name(name))
    return Model.from_proto((yield from rpc.call(rpc.GET_MODEL, request)).model)


def listing() -> Operation[Models]:
    got = yield from rpc.call(rpc.LIST_MODELS, model_pb2.ListModelsRequest())
    return Models(
        models=tuple(Model.from_proto(model) for model in got.models),
        calibrations=tuple(Calibration.from_proto(artifact) for artifact in got.calibrations),
    )


def delete(name: str) -> Operation[None]:
    yield from rpc.call(rpc.DELETE_MODEL, model_pb2.DeleteModelRequest(name=full_name(name)))


def import_calibration(artifact: bytes | str | Path) -> Operation[Calibration]:
    """Uploads only what the server lacks. Errors: NOT_FOUND for a path that cannot be read."""
    data = (
        artifact if isinstance(artifact, bytes) else (yield from rpc.work(lambda: _read(artifact)))
    )
    digest = hashlib.sha256(data).digest()
    for known in (yield from listing()).calibrations:
        if known.name == f"calibrations/{digest.hex()}":
            return known

    def messages() -> Iterator[model_pb2.ImportCalibrationRequest]:
        for at in range(0, max(1, len(data)), _CHUNK_BYTES):
            yield model_pb2.ImportCalibrationRequest(
                sha256=digest if at == 0 else b"", data=data[at : at + _CHUNK_BYTES]
            )

    answer = yield from rpc.upload(rpc.IMPORT_CALIBRATION, messages)
    return Calibration.from_proto(answer.calibration)


def _read(artifact: bytes | str | Path) -> bytes:
    if isinstance(artifact, bytes):
        return artifact
    try:
        return Path(artifact).read_bytes()
    except OSError as error:
        raise KvernError("NOT_FOUND", f"'{artifact}': {error.strerror}") from error
