"""Rows that are almost equal: for each row the nearest one before it, by brute force in blocks. Knows vectors, not what they mean.

N = rows, D = values of a row, B = rows of a block, I = pairs found
"""

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]

BLOCK_ROWS = 1024  # times all rows before them, in float32: 80 MB at 20,000 rows, some three such arrays


def nearest_before(sketch_ND: NDArray[np.float32], group_N: I64, *, max_distance: float) -> tuple[I64, I64, NDArray[np.float64]]:
    """Return (row_I, earlier_I, distance_I), rows ascending: the nearest earlier row of another group, where it is near enough.

    Args:
        group_N: rows of one group are known to be equal, and are not told of.
        max_distance: Euclidean; above what float32 leaves of it, some 1e-3 of a row's length.
    """
    norm_N = np.einsum("nd,nd->n", sketch_ND, sketch_ND, dtype=np.float64).astype(np.float32)
    rows, others, distances = [], [], []
    for start in range(0, len(sketch_ND), BLOCK_ROWS):
        stop = min(start + BLOCK_ROWS, len(sketch_ND))
        square_BN = sketch_ND[start:stop] @ sketch_ND[:stop].T
        square_BN *= -2
        square_BN += norm_N[start:stop, None]
        square_BN += norm_N[None, :stop]
        number_N = np.arange(stop)
        square_BN[(group_N[start:stop, None] == group_N[None, :stop]) | (number_N[None] >= number_N[start:, None])] = np.inf
        nearest_B = square_BN.argmin(axis=1)
        distance_B = np.sqrt(np.maximum(square_BN[np.arange(stop - start), nearest_B].astype(np.float64), 0))
        near_B = np.flatnonzero(distance_B <= max_distance)
        rows.append(start + near_B)
        others.append(nearest_B[near_B])
        distances.append(distance_B[near_B])
    return np.concatenate(rows), np.concatenate(others), np.concatenate(distances)
