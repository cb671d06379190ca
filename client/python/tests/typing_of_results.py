"""Nothing here runs: mypy checks that results have the types of the arrays that were passed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

import kvern

if TYPE_CHECKING:
    from typing_extensions import assert_type

    Half = NDArray[np.float16]

    def arrays(client: kvern.Client, k: Half) -> None:
        assert_type(client.compress(k, k).k, Half)
        assert_type(client.compress([k, k], [k, k]).v, Half)
        assert_type(client.compress(k, k).kept_indices, NDArray[np.int32])
        assert_type(client.compress(k, k).quality.k_error, float | None)

    async def awaited(client: kvern.aio.Client, k: Half) -> None:
        assert_type((await client.compress([k], [k])).k, Half)
        assert_type(await client.plan(k, k), kvern.Plan)
