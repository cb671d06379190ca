"""The error of what transformers can do and Kvern cannot."""

from __future__ import annotations

from kvern.errors import KvernError


def unsupported(field: str, got: str, want: str) -> KvernError:
    error = KvernError("UNIMPLEMENTED", f"{field}: got {got}, want {want}", field=field)
    error.next_step = "use the model as the message wants it, or leave its cache uncompressed"
    return error
