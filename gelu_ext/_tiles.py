"""How many rows an MLP takes at a time: the rule of ``tile_rows="auto"``, of shapes only.

On the CPU tiles of 512 rows are within some hundredths of the fastest of 64 to 2048, for widths of 256 to 4096 in each
dtype: fewer rows repeat the work that a product has with its weight, more do not stay in the cache. On CUDA a tile is
as large as its pre-activation may be: 256 MiB, and no fewer than 4096 rows, which fill the device.
"""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

TileRows = int | Literal["auto"] | None

_CPU_ROWS = 512
_DEVICE_ROWS, _DEVICE_BYTES = 4096, 2**28


def rows_of_a_tile(tile_rows: int | Literal["auto"], x: Tensor, width: int) -> int:
    """Of ``x``, whose pre-activation is so wide."""
    if tile_rows != "auto":
        return tile_rows
    least = _CPU_ROWS if x.is_cpu else max(_DEVICE_ROWS, _DEVICE_BYTES // (x.itemsize * max(width, 1)))
    rows = math.prod(x.shape[:-1])
    return max(1, math.ceil(rows / max(1, rows // least)))  # no tile smaller than that, and all of one size
