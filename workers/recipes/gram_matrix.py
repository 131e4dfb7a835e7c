"""Gram matrices from the rows of their upper triangles, as `GramResult` holds them."""

import numpy as np
from numpy.typing import ArrayLike


def symmetric(upper_rows: ArrayLike, num: int) -> np.ndarray:
    """(..., num, num) from (..., num * (num + 1) / 2) values for i <= j, row by row."""
    values = np.asarray(upper_rows, np.float64)
    matrix = np.zeros((*values.shape[:-1], num, num))
    rows, columns = np.triu_indices(num)
    matrix[..., rows, columns] = values
    matrix[..., columns, rows] = values
    return matrix
