"""What a server is and what it can do."""

from __future__ import annotations

from dataclasses import dataclass, field

from kvern import rpc
from kvern.results import SHAPE_CLASSES
from kvern.rpc import Operation
from kvern.v1 import server_pb2


@dataclass(frozen=True)
class Device:
    """The GPU that the server works on."""

    name: str
    uuid: str
    driver: str
    memory_bytes: int
    reserved_bytes: int
    busy_seconds: float
    healthy: bool


@dataclass(frozen=True)
class ServerInfo:
    """limits: by flag of kvernd, in the unit the name says. broker_address: empty over TCP. device:
    None on the host."""

    version: str
    commit: str
    backend: str
    instruction_set: str
    threads: int
    uptime_seconds: int
    limits: dict[str, int] = field(repr=False)
    broker_address: str
    device: Device | None
    backend_reason: str


@dataclass(frozen=True)
class StageParam:
    """One parameter. type: int, float, bool or enum. range: ``1..4096`` or ``mean|max``."""

    name: str
    type: str
    default: str
    range: str
    help: str


@dataclass(frozen=True)
class Stage:
    """A registered stage. kind: budgeter, scorer, selector or codec. inputs: what it needs."""

    kind: str
    name: str
    help: str
    params: tuple[StageParam, ...]
    inputs: tuple[str, ...]
    shape_classes: tuple[str, ...]


@dataclass(frozen=True)
class Preset:
    """A shipped policy, in the words of the command line: with layer_sensitivity and without."""

    name: str
    help: str
    calibrated: str
    uncalibrated: str


@dataclass(frozen=True)
class Stages:
    """All that a policy may name."""

    stages: tuple[Stage, ...]
    presets: tuple[Preset, ...]


def info() -> Operation[ServerInfo]:
    got = yield from rpc.call(rpc.GET_SERVER_INFO, server_pb2.GetServerInfoRequest())
    return ServerInfo(
        version=got.version,
        commit=got.commit,
        backend=got.backend,
        instruction_set=got.instruction_set,
        threads=got.threads,
        uptime_seconds=got.uptime_seconds,
        limits=dict(got.limits),
        broker_address=got.broker_address,
        device=_device(got.device) if got.HasField("device") else None,
        backend_reason=got.backend_reason,
    )


def stages() -> Operation[Stages]:
    got = yield from rpc.call(rpc.LIST_STAGES, server_pb2.ListStagesRequest())
    return Stages(
        stages=tuple(_stage(stage) for stage in got.stages),
        presets=tuple(
            Preset(preset.name, preset.help, preset.calibrated, preset.uncalibrated)
            for preset in got.presets
        ),
    )


def _stage(stage: server_pb2.StageInfo) -> Stage:
    return Stage(
        kind=stage.kind,
        name=stage.name,
        help=stage.help,
        params=tuple(
            StageParam(param.name, param.type, param.default_value, param.range, param.help)
            for param in stage.params
        ),
        inputs=tuple(stage.inputs),
        shape_classes=tuple(SHAPE_CLASSES.get(shape, "") for shape in stage.shape_classes),
    )


def _device(device: server_pb2.Device) -> Device:
    return Device(
        name=device.name,
        uuid=device.uuid,
        driver=device.driver,
        memory_bytes=device.memory_bytes,
        reserved_bytes=device.reserved_bytes,
        busy_seconds=device.busy_seconds,
        healthy=device.healthy,
    )
