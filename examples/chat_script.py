"""A chat of any length whose first turn holds a fact that its last turn asks for."""

from __future__ import annotations

FACT = (
    "The lighthouse keeper's name is Orsolya Bartok and the secret code of the harbour is 7319. "
    "Please remember both."
)
FACT_REPLY = "I will remember: the keeper is Orsolya Bartok and the code is 7319."
QUESTION = (
    "At the beginning I told you the lighthouse keeper's name and the secret code of the harbour. "
    "What are they?"
)
ANSWER = "Orsolya Bartok"

_PLACES = (
    ("Velm", "at the mouth of a wide grey river", "fishing boats"),
    ("Aster", "behind three rows of dunes", "kite makers"),
    ("Dornach", "on both sides of a narrow canal", "glass blowers"),
    ("Linfeld", "among vineyards, half an hour from the sea", "coopers"),
    ("Oskirk", "on a rock that the tide cuts off twice a day", "bell founders"),
    ("Marrow", "under a white cliff", "honey traders"),
    ("Tessin", "where the railway ends", "clock menders"),
    ("Hollin", "in a valley full of apple trees", "cider presses"),
    ("Brack", "beside a salt marsh", "reed cutters"),
    ("Quay Ferris", "around a square basin of black stone", "rope walks"),
    ("Nordham", "on the windward side of the island", "wool markets"),
    ("Pell", "below an old monastery", "paper mills"),
)
_VISITS = (
    ("In spring", "the wall is covered with flowers and the inns fill up", "stayed two nights"),
    ("In autumn", "fog hides the roofs until noon and lamps burn all day", "missed the last bus"),
    ("In winter", "children skate on the ponds and bakers start early", "bought a blue scarf"),
    ("In summer", "a band plays on the pier every evening at eight", "slept on the deck"),
)


def turn(index: int) -> tuple[str, str]:
    """What the user says, and what the assistant replies, of round `index`."""
    place, where, trade = _PLACES[index % len(_PLACES)]
    season, sight, deed = _VISITS[(index + index // len(_PLACES)) % len(_VISITS)]
    said = (
        f"Note {index + 1}. The town of {place} lies {where}. It is known for its {trade}. "
        f"{season} {sight}. When I was there I {deed} and walked along the shore for hours."
    )
    return said, f"Noted: {place} lies {where}, and it is known for its {trade}."


def user(text: str) -> str:
    """In the model's chat format, up to where the assistant speaks."""
    return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
END = "<|im_end|>\n"
