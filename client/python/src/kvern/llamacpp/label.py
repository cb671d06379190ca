"""Token ids that stand for a compacted prefix in the server's bookkeeping.

The server reuses the cells whose ids a prompt repeats, and never looks at what they hold. The ids
of the text itself would let other prompts that begin alike reuse compacted cells as if they were
whole, so a label is made of ids that no such prompt begins with.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from kvern.errors import invalid


def label(tokens: NDArray[np.int32], kept: NDArray[np.int32]) -> NDArray[np.int32]:
    """Ids i32 [n] drawn from the text's own, the same for the same text and the same choice.

    tokens: ids of the text. kept: [layers, kv_heads, n]. The first id differs from the text's
    first. Errors: INVALID_ARGUMENT for a text of one id, which leaves nothing to draw from.
    """
    ids: NDArray[np.int32] = np.unique(tokens).astype(np.int32)
    others = ids[ids != tokens[0]]
    if not others.size:
        raise invalid("label", f"label: got a text of the one id {tokens[0]}, want your own label")
    text = hashlib.shake_256(tokens.astype("<i4").tobytes())
    text.update(np.ascontiguousarray(kept, "<i4").tobytes())
    draws = np.frombuffer(text.digest(8 * kept.shape[-1]), "<u8")
    drawn: NDArray[np.int32] = ids[draws % ids.size]
    drawn[0] = others[draws[0] % others.size]
    return drawn


def checked(given: object, count: int) -> NDArray[np.int32]:
    """A caller's own label. Errors: INVALID_ARGUMENT."""
    ids = np.asarray(given)
    if ids.dtype.kind not in "iu" or ids.shape != (count,) or ids.min() < 0 or ids.max() >= 2**31:
        raise invalid("label", f"label: got {list(ids.shape)} of {ids.dtype}, want {count} ids")
    return ids.astype(np.int32)
