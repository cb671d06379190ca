"""Texts as windows of token ids, with what makes a run repeatable: hashes and counts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kvern.errors import KvernError

Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class Text:
    """A file's token ids. used: how many of them, from the first, are calibrated on."""

    name: str
    sha256: str
    ids: Sequence[int] = field(repr=False)
    used: int

    def windows(self, window: int) -> list[Sequence[int]]:
        """Whole windows of the used part; of a shorter text its one short window."""
        if self.used < window:
            return [self.ids[: self.used]]
        return [self.ids[at : at + window] for at in range(0, self.used - window + 1, window)]

    def rest(self) -> Sequence[int]:
        return self.ids[self.used :]


def read(path: str, encode: Encode, tokens: int) -> Text:
    """FILE, or FILE@TOKENS for another number of tokens. Errors: INVALID_ARGUMENT; OSError."""
    name, at, count = path.rpartition("@")
    if not (at and count.isdigit()):
        name, wanted = path, tokens
    else:
        wanted = int(count)
    raw = Path(name).read_bytes()
    ids = encode(raw.decode("utf-8"))
    if not ids or wanted < 1:
        raise KvernError("INVALID_ARGUMENT", f"text: got {wanted} of {len(ids)} tokens in {name}")
    return Text(
        name=Path(name).name,
        sha256=hashlib.sha256(raw).hexdigest(),
        ids=ids,
        used=min(wanted, len(ids)),
    )
