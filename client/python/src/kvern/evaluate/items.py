"""What is asked of a cache: how a text goes on, and a number that was said somewhere in it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from kvern.calibrate.text import Encode, Text
from kvern.errors import KvernError

_CITIES = ("Lisbon", "Nairobi", "Oslo", "Quito", "Dublin", "Hanoi", "Prague", "Lima")
_FIRST_DEPTH, _LAST_DEPTH = 0.1, 0.9


@dataclass(frozen=True)
class Item:
    """context: token ids whose cache is compressed, a needle among them. after: how the text goes
    on. question, answer: of the needle; both follow the context too."""

    text: str
    window: int
    depth: float
    context: Sequence[int] = field(repr=False)
    after: Sequence[int] = field(repr=False)
    question: Sequence[int] = field(repr=False)
    answer: Sequence[int] = field(repr=False)


@dataclass(frozen=True)
class Shape:
    """Tokens of a context (its needle counted) and after it, windows of each text, and the seed of
    needles."""

    context: int = 1024
    after: int = 33
    windows: int = 4
    seed: int = 0


def make_items(texts: Sequence[Text], encode: Encode, shape: Shape) -> list[Item]:
    """Windows at equal distances over each text; the first of every text come first.

    Errors: INVALID_ARGUMENT for a text too short.
    """
    chance = random.Random(shape.seed)
    items: list[Item] = []
    for window in range(shape.windows):
        for text in texts:
            city, number = chance.choice(_CITIES), str(chance.randrange(10000, 100000))
            needle = encode(f"\n\nThe secret number for {city} is {number}.\n\n")
            body = shape.context - len(needle)
            need = body + shape.after + 1
            if len(text.ids) < need * shape.windows:
                raise KvernError(
                    "INVALID_ARGUMENT",
                    f"text: got {len(text.ids)} tokens in {text.name}, want "
                    f"{need * shape.windows} for {shape.windows} windows",
                )
            start = window * ((len(text.ids) - need) // max(1, shape.windows - 1))
            ids = list(text.ids[start : start + need])
            index = len(items)
            depth = _FIRST_DEPTH + (_LAST_DEPTH - _FIRST_DEPTH) * ((index * 0.618034) % 1)
            at = int(depth * body)
            items.append(
                Item(
                    text=text.name,
                    window=window,
                    depth=depth,
                    context=[*ids[:at], *needle, *ids[at:body]],
                    after=ids[body:],
                    question=encode(f"\n\nThe secret number for {city} is"),
                    answer=encode(f" {number}"),
                )
            )
    return items
