"""Methods on the wire, and operations: generators that say what to do and leave how to a client.

An operation yields effects (a call, a stream, work of this machine) and gets their results back, or
their errors thrown in, so that its `finally` blocks may yield effects too. `kvern.client` performs
effects in the calling thread, `kvern.aio` on the event loop; what an operation does is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from kvern.v1 import compression_pb2, model_pb2, pool_pb2, server_pb2, store_pb2

T = TypeVar("T")
_CLEAN_UP_SECONDS = 2.0


class Message(Protocol):
    def SerializeToString(self) -> bytes: ...  # noqa: N802


Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)


@dataclass(frozen=True)
class Method(Generic[Request, Response]):
    path: str
    response: type[Response]


@dataclass(frozen=True)
class Unary:
    """timeout: seconds, where it is not the caller's."""

    method: Method[Any, Any]
    request: Message
    timeout: float | None = None


@dataclass(frozen=True)
class Upload:
    """A client stream; answers the response."""

    method: Method[Any, Any]
    messages: Callable[[], Iterator[Message]]


@dataclass(frozen=True)
class Download:
    """A server stream; each message goes to `take`, whose error ends the call."""

    method: Method[Any, Any]
    request: Message
    take: Callable[[Any], None]


@dataclass(frozen=True)
class Work:
    """What blocks: copies of caches, and the handle broker."""

    run: Callable[[], Any]


Effect = Unary | Upload | Download | Work
Operation = Generator[Effect, Any, T]


def call(method: Method[Request, Response], request: Request) -> Operation[Response]:
    response: Response = yield Unary(method, request)
    return response


def clean_up(method: Method[Request, Response], request: Request) -> Operation[Response]:
    """A call that follows another one, whose deadline may be over."""
    response: Response = yield Unary(method, request, _CLEAN_UP_SECONDS)
    return response


def upload(
    method: Method[Request, Response], messages: Callable[[], Iterator[Request]]
) -> Operation[Response]:
    response: Response = yield Upload(method, messages)
    return response


def download(
    method: Method[Request, Response], request: Message, take: Callable[[Response], None]
) -> Operation[None]:
    yield Download(method, request, take)


def work(run: Callable[[], T]) -> Operation[T]:
    value: T = yield Work(run)
    return value


def _method(
    service: str, name: str, request: type[Request], response: type[Response]
) -> Method[Request, Response]:
    del request  # says the type
    return Method(f"/kvern.v1.{service}/{name}", response)


COMPRESS_CACHE = _method(
    "CompressionService",
    "CompressCache",
    compression_pb2.CompressCacheRequest,
    compression_pb2.CompressCacheResponse,
)
RELEASE_SEQUENCES = _method(
    "CompressionService",
    "ReleaseSequences",
    compression_pb2.ReleaseSequencesRequest,
    compression_pb2.ReleaseSequencesResponse,
)
GET_SERVER_INFO = _method(
    "ServerService",
    "GetServerInfo",
    server_pb2.GetServerInfoRequest,
    server_pb2.GetServerInfoResponse,
)
LIST_STAGES = _method(
    "ServerService", "ListStages", server_pb2.ListStagesRequest, server_pb2.ListStagesResponse
)
REGISTER_MODEL = _method(
    "ModelService", "RegisterModel", model_pb2.RegisterModelRequest, model_pb2.RegisterModelResponse
)
GET_MODEL = _method(
    "ModelService", "GetModel", model_pb2.GetModelRequest, model_pb2.GetModelResponse
)
LIST_MODELS = _method(
    "ModelService", "ListModels", model_pb2.ListModelsRequest, model_pb2.ListModelsResponse
)
DELETE_MODEL = _method(
    "ModelService", "DeleteModel", model_pb2.DeleteModelRequest, model_pb2.DeleteModelResponse
)
IMPORT_CALIBRATION = _method(
    "ModelService",
    "ImportCalibration",
    model_pb2.ImportCalibrationRequest,
    model_pb2.ImportCalibrationResponse,
)
REGISTER_POOL = _method(
    "PoolService", "RegisterPool", pool_pb2.RegisterPoolRequest, pool_pb2.RegisterPoolResponse
)
LIST_POOLS = _method(
    "PoolService", "ListPools", pool_pb2.ListPoolsRequest, pool_pb2.ListPoolsResponse
)
UNREGISTER_POOL = _method(
    "PoolService", "UnregisterPool", pool_pb2.UnregisterPoolRequest, pool_pb2.UnregisterPoolResponse
)
PUT_SEQUENCE = _method(
    "StoreService", "PutSequence", store_pb2.PutSequenceRequest, store_pb2.PutSequenceResponse
)
APPEND_SEQUENCE = _method(
    "StoreService",
    "AppendSequence",
    store_pb2.AppendSequenceRequest,
    store_pb2.AppendSequenceResponse,
)
FETCH_SEQUENCE = _method(
    "StoreService", "FetchSequence", store_pb2.FetchSequenceRequest, store_pb2.FetchSequenceResponse
)
GET_SEQUENCE = _method(
    "StoreService", "GetSequence", store_pb2.GetSequenceRequest, store_pb2.GetSequenceResponse
)
LIST_SEQUENCES = _method(
    "StoreService", "ListSequences", store_pb2.ListSequencesRequest, store_pb2.ListSequencesResponse
)
DELETE_SEQUENCE = _method(
    "StoreService",
    "DeleteSequence",
    store_pb2.DeleteSequenceRequest,
    store_pb2.DeleteSequenceResponse,
)
