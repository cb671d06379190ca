"""Caches as numpy sees them: views of numpy arrays and of CPU torch tensors, never copies.

bf16 is raw uint16 in here (kvern.dtypes). torch is looked up among the modules that are loaded
already; numpy users never import it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from kvern.errors import KvernError, invalid


class ArrayLike(Protocol):
    """What numpy arrays and torch tensors have in common, and sequences of them have not."""

    @property
    def shape(self) -> Any: ...
    @property
    def dtype(self) -> Any: ...


Array = TypeVar("Array", bound=ArrayLike)
Raw = NDArray[Any]

_AXES = "[kv_heads, tokens, head_dim] or [layers, kv_heads, tokens, head_dim]"


@dataclass(frozen=True)
class Planes(Generic[Array]):
    """k or v of a cache: one raw array [kv_heads, tokens, head_dim] per layer.

    whole: all layers in one array, None where the caller gave one array per layer. restore: from a
    raw array to the kind of array that the caller passed, without a copy.
    """

    layers: tuple[Raw, ...]
    dtype: str
    whole: Raw | None
    has_layers_axis: bool
    restore: Callable[[Raw], Array]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """[layers, kv_heads, tokens, head_dim]."""
        kv_heads, tokens, head_dim = self.layers[0].shape
        return len(self.layers), kv_heads, tokens, head_dim

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers)

    def tobytes(self) -> bytes:
        """Row-major bytes of all layers."""
        return b"".join(layer.tobytes() for layer in self.layers)

    def stacked(self) -> Raw:
        """All layers in one array; a copy only where the caller gave several."""
        return np.stack(self.layers) if self.whole is None else self.whole

    def result(self, raw: Raw) -> Array:
        """raw: [layers, ...] as the caller's kind, without the layers axis where it had none."""
        return self.restore(raw if self.has_layers_axis else raw[0])


def planes(name: str, given: Array | Sequence[Array], dtype: str | None = None) -> Planes[Array]:
    """Views an array, or one array per layer. Errors: INVALID_ARGUMENT naming `name`."""
    if isinstance(given, (list, tuple)):
        if not given:
            raise invalid(name, f"{name}: got an empty sequence, want one array per layer")
        parts = [_view(f"{name}[{i}]", part, dtype) for i, part in enumerate(given)]
        first = parts[0]
        for i, part in enumerate(parts):
            if part[0].shape != first[0].shape or part[1] != first[1] or part[0].ndim != 3:
                raise invalid(
                    f"{name}[{i}]",
                    f"{name}[{i}]: got {part[1]} {list(part[0].shape)}, want "
                    f"[kv_heads, tokens, head_dim] like {name}[0]: {first[1]} "
                    f"{list(first[0].shape)}",
                )
        return Planes(tuple(p[0] for p in parts), first[1], None, True, first[2])
    raw, dtype_name, restore = _view(name, given, dtype)
    if raw.ndim not in (3, 4):
        raise invalid(name, f"{name}: got shape {list(raw.shape)}, want {_AXES}")
    whole = raw if raw.ndim == 4 else raw[np.newaxis]
    if not len(whole):
        raise invalid(name, f"{name}: got 0 layers, want 1 or more")
    return Planes(tuple(whole), dtype_name, whole, raw.ndim == 4, restore)


def side(name: str, given: Any, dtype: str | None = None) -> tuple[Raw, str]:
    """A side tensor as a raw array and its dtype's name."""
    raw, dtype_name, _ = _view(name, given, dtype)
    return raw, dtype_name


def indices(name: str, given: Any) -> NDArray[np.int32]:
    """Integers of any kind as int32. Errors: INVALID_ARGUMENT naming `name`."""
    values = _torch_to_numpy(given) if _is_torch(given) else np.asarray(given)
    if values.size and values.dtype.kind not in "iu":
        raise invalid(name, f"{name}: got {values.dtype}, want integers")
    if values.size and (values.min() < -(2**31) or values.max() >= 2**31):
        raise invalid(name, f"{name}: got {values.max()}, want 32-bit integers")
    return values.astype(np.int32)


def numpy_result(raw: Raw, dtype: str) -> Raw:
    """A raw array as numpy code wants it: bf16 as ml_dtypes.bfloat16 where that is installed."""
    if dtype != "bf16":
        return raw
    bfloat16 = _ml_bfloat16()
    return raw if bfloat16 is None else raw.view(bfloat16)


def torch_result(raw: Raw, dtype: str) -> Any:
    """A raw array as a torch tensor over the same memory; asked for by name, so torch may load."""
    torch = importlib.import_module("torch")
    if dtype == "bf16":
        return torch.from_numpy(raw.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(raw)


def _view(name: str, given: Any, dtype: str | None) -> tuple[Raw, str, Callable[[Raw], Any]]:
    """(raw array, dtype name, restore)."""
    if _is_torch(given):
        raw = _torch_to_numpy(given, name)
        torch = sys.modules["torch"]
        names = {torch.bfloat16: "bf16", torch.float16: "f16", torch.float32: "f32"}
        got = names.get(given.dtype)
        if got is None or dtype not in (None, got):
            raise _dtype_error(name, str(given.dtype), dtype)
        return raw, got, lambda out, got=got: torch_result(out, got)
    if not isinstance(given, np.ndarray):
        raise invalid(
            name,
            f"{name}: got {type(given).__module__}.{type(given).__qualname__}, want a numpy array "
            "or a torch tensor",
        )
    native = given.dtype.newbyteorder("<") if given.dtype.byteorder == ">" else given.dtype
    got = {"float16": "f16", "float32": "f32", "bfloat16": "bf16"}.get(given.dtype.name)
    if given.dtype == np.uint16 and dtype == "bf16":
        got = "bf16"
    if got is None or dtype not in (None, got) or native is not given.dtype:
        raise _dtype_error(name, str(given.dtype), dtype)
    if got != "bf16":
        return given, got, lambda out: out
    as_given: DTypeLike = given.dtype
    return given.view(np.uint16), got, lambda out: out.view(as_given)


def _dtype_error(name: str, got: str, dtype: str | None) -> KvernError:
    want = dtype or "f32, f16 or bf16"
    return invalid(name, f"{name}: got dtype {got}, want {want}", reason="DTYPE_UNKNOWN")


def _is_torch(given: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(given, torch.Tensor)


def _torch_to_numpy(given: Any, name: str = "tensor") -> Raw:
    torch = sys.modules["torch"]
    if given.device.type != "cpu":
        raise invalid(
            name, f"{name}: got memory of {given.device}, want the host's", reason="DEVICE_MEMORY"
        )
    detached = given.detach()
    if detached.dtype is torch.bfloat16:
        raw: Raw = detached.view(torch.int16).numpy()
        return raw.view(np.uint16)
    return np.asarray(detached.numpy())


def _ml_bfloat16() -> Any:
    try:
        import ml_dtypes
    except ImportError:
        return None
    return ml_dtypes.bfloat16
