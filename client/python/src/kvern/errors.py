"""One error type: what the server (or this client) refused, why, and what to do next."""

from __future__ import annotations

from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

# What to do, by the machine-readable reason.
_NEXT_BY_REASON = {
    "UNREACHABLE": "start one with `kvernd`, or name another: Client('unix:PATH') or 'HOST:PORT'",
    "BROKER_MISSING": "use via='auto', or connect over a Unix socket: Client('unix:PATH')",
    "INPUT_MISSING": "give the tensor or calibration it names, or choose another scorer",
    "FILE_CONTENT": "`kvern inspect FILE` shows what a good file holds",
    "RESPONSE_TOO_LARGE": "use via='store', or raise --max-response-bytes of kvernd",
    "CODEC_NEEDS_STORE": "use via='auto' or via='store', ask for packed=True, or codec='raw16'",
    "BUDGET_BELOW_PROTECTED": "raise the budget, lower sink=, or keep every token: policy='safe'",
    "ROPE_UNKNOWN": "name the model's RoPE: model=kvern.ModelSpec(..., rope=kvern.Rope(theta=...)),"
    " or choose a policy without rm and unrotate",
    "SHAPE_CLASS": "choose a policy with equal counts: budgeter='uniform', selector='topk'",
    "MODEL_UNKNOWN": "register it: client.register_model(spec)",
    "MODEL_IN_USE": "delete its stored sequences and pools first: client.list_sequences()",
    "SEQUENCE_UNKNOWN": "client.list_sequences() shows what is stored",
    "POOL_EXPIRED": "register the pool again: it ends with its broker connection",
    "CALIBRATION_UNKNOWN": "upload it: client.import_calibration(path)",
    "EPOCH_MISMATCH": "fetch the sequence's epoch (client.get_sequence(name)) and ask again",
    "SEQUENCE_POISONED": "recompute the sequence that the message names",
    "DEVICE_LOST": "restart kvernd: it lost its GPU",
    "DTYPE_UNKNOWN": "pass f32, f16 or bf16; bf16 as ml_dtypes.bfloat16, as torch.bfloat16, or as "
    "uint16 with dtype='bf16'",
    "DEVICE_MEMORY": "copy it to the host first: tensor.cpu()",
    "CLOSED": "make a new Client: this one was closed",
}
_NEXT_BY_CODE = {
    "INVALID_ARGUMENT": "mend what the message names",
    "FAILED_PRECONDITION": "give what the message names, or choose a policy that does not need it",
    "NOT_FOUND": "check the name",
    "PERMISSION_DENIED": "run as the server's user, or use via='inline' or via='store'",
    "ALREADY_EXISTS": "choose another name, or delete the old one first",
    "DEADLINE_EXCEEDED": "raise timeout=, or try when the server is less busy; nothing has changed",
    "CANCELLED": "ask again; nothing has changed",
    "UNAVAILABLE": "the server went away or is shutting down: ask again when it is back; nothing "
    "has changed",
}


class KvernError(Exception):
    """A refused or failed call.

    code: gRPC's name, for example ``FAILED_PRECONDITION``. reason: finer and machine-readable, for
    example ``ROPE_UNKNOWN``; may be empty. field: path of the argument at fault; may be empty.
    retry_after: seconds to wait, where the server says so. next_step: what to do. message: what was
    got and wanted.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        reason: str = "",
        field: str = "",
        retry_after: float | None = None,
    ) -> None:
        self.code = code
        self.message = message
        self.reason = reason
        self.field = field
        self.retry_after = retry_after
        self.next_step = self._next_step()
        super().__init__(message)

    def __str__(self) -> str:
        name = f"{self.code}/{self.reason}" if self.reason else self.code
        # Servers name the field in the message as well; say it once.
        field = f"{self.field}: " if self.field and self.field not in self.message else ""
        return f"{name}: {field}{self.message}\nnext: {self.next_step}"

    def _next_step(self) -> str:
        if self.reason in _NEXT_BY_REASON:
            return _NEXT_BY_REASON[self.reason]
        if self.retry_after is not None:
            return (
                f"ask again in {self.retry_after:g} s, or raise the limit that the message names "
                "(a flag of kvernd)"
            )
        if self.code == "INVALID_ARGUMENT" and "policy" in self.field:
            return "client.list_stages() lists every name, parameter and range"
        return _NEXT_BY_CODE.get(self.code, "the server's log has the rest")

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.code, self.message, self.reason, self.field, self.retry_after)


def invalid(field: str, message: str, *, reason: str = "") -> KvernError:
    """The caller's argument `field` is at fault; `message` says what was got and wanted."""
    return KvernError("INVALID_ARGUMENT", message, reason=reason, field=field)


def from_status(status: status_pb2.Status) -> KvernError:
    """The error of a google.rpc.Status whose code is not OK."""
    reason, field, retry_after = "", "", None
    for detail in status.details:
        info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        retry = error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            reason = info.reason
        elif detail.Unpack(bad) and bad.field_violations:
            field = bad.field_violations[0].field
        elif detail.Unpack(retry):
            retry_after = retry.retry_delay.seconds + retry.retry_delay.nanos * 1e-9
    return KvernError(
        _CODE_NAMES.get(status.code, "UNKNOWN"),
        status.message,
        reason=reason,
        field=field,
        retry_after=retry_after,
    )


def from_grpc(error: grpc.RpcError) -> KvernError:
    """The error of a failed call, of grpc and of grpc.aio alike."""
    call: Any = error  # both kinds have the methods below, and share no type that says so
    status = status_pb2.Status()
    for key, value in call.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status.ParseFromString(value)
    code: grpc.StatusCode = call.code()
    if status.code == code.value[0]:
        return from_status(status)
    return KvernError(code.name, call.details() or "")


_CODE_NAMES: dict[int, str] = {code.value[0]: code.name for code in grpc.StatusCode}


def _rebuild(
    code: str, message: str, reason: str, field: str, retry_after: float | None
) -> KvernError:
    return KvernError(code, message, reason=reason, field=field, retry_after=retry_after)
