"""Errors of what comes from llama.cpp: its files, models and servers."""

from __future__ import annotations

from kvern.errors import KvernError


def unsupported(field: str, got: object, want: str) -> KvernError:
    """A layout or a model that is not known; nothing is guessed."""
    error = KvernError("UNIMPLEMENTED", f"{field}: got {got}, want {want}", field=field)
    error.next_step = "run the server as the message wants it, or leave its slots uncompressed"
    return error


def malformed(field: str, got: object, want: str) -> KvernError:
    """A file that contradicts itself or the model."""
    error = KvernError("INVALID_ARGUMENT", f"{field}: got {got}, want {want}", field=field)
    error.next_step = "check that this is a whole file, and the file of this model"
    return error
