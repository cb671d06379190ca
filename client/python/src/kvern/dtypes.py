"""Element types by name, in numpy and on the wire."""

from __future__ import annotations

from typing import Any

import numpy as np

from kvern.v1 import types_pb2

# bf16 has no numpy dtype of its own: inside this package its bits are uint16.
RAW_DTYPES: dict[str, np.dtype[Any]] = {
    "bf16": np.dtype("<u2"),
    "f16": np.dtype("<f2"),
    "f32": np.dtype("<f4"),
}
WIRE_DTYPES = {
    "bf16": types_pb2.DTYPE_BF16,
    "f16": types_pb2.DTYPE_F16,
    "f32": types_pb2.DTYPE_F32,
}
DTYPE_NAMES = {wire: name for name, wire in WIRE_DTYPES.items()}
