"""Many small pieces of memory copied by one call, wherever they lie."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_PIECE_NBYTES = 1 << 17  # copied twice, the second time out of the cache


class _Span:
    """Memory from ``address`` on as elements of ``itemsize`` bytes that overlap, one from each byte on."""

    def __init__(self, address: int, count: int, itemsize: int) -> None:
        self.__array_interface__ = {
            "version": 3,
            "data": (address, True),  # read-only
            "shape": (count,),
            "strides": (1,),
            "typestr": f"|V{itemsize}",
        }


def gather(
    addresses: NDArray[np.int64], rows: NDArray[np.uint8], places: NDArray[np.int64] | None = None
) -> None:
    """Copy as many bytes as a row has from each address into ``rows`` [k, nbytes], in order or at ``places``.

    The caller vouches that these bytes can be read, and keeps them so. NumPy's own indexing does the work:
    as if all memory that the addresses span were one array.
    """
    nbytes = rows.shape[1]
    elements = rows.view(np.dtype((np.void, nbytes))).reshape(-1)
    step = max(1, _PIECE_NBYTES // nbytes)
    lowest, highest = int(addresses.min()), int(addresses.max())
    span: NDArray[Any] = np.asarray(_Span(lowest, highest - lowest + 1, nbytes))
    offsets = addresses - lowest
    for start in range(0, len(addresses), step):
        part = slice(start, start + step)
        elements[part if places is None else places[part]] = span[offsets[part]]
