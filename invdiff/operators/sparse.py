"""Sparse matrices as torch tensors, with their transposes, and their LU factors."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["SparseLU", "csr_pair", "to_torch"]


def csr_pair(values: np.ndarray, rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """A sparse matrix from triplets, and its transpose, both CSR."""
    from scipy.sparse import csr_array

    transposed = csr_array((values, (columns, rows)), shape=shape[::-1])
    matrix = transposed.T.tocsr()
    return to_torch(matrix), to_torch(transposed)


def to_torch(matrix: Any) -> Tensor:
    """A scipy CSR array as a torch tensor with the 32-bit indices that MKL and cuSPARSE use."""
    pointers, indices = (torch.from_numpy(a.astype(np.int32)) for a in (matrix.indptr, matrix.indices))
    with warnings.catch_warnings():
        # torch announces once per process that CSR tensors are in beta state
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta", category=UserWarning)
        return torch.sparse_csr_tensor(pointers, indices, torch.from_numpy(matrix.data), matrix.shape, check_invariants=True)


class SparseLU:
    """A square sparse matrix, factorised once, when it is first solved with; on the CPU, in float64.

    Args:
        matrix: scipy sparse, (N, N), not singular.

    The factor is made again where the object has been copied or pickled.
    """

    def __init__(self, matrix: Any) -> None:
        self.matrix = matrix.tocsc()
        self._factor: Any = None

    def solve(self, b: Tensor, *, transposed: bool = False) -> Tensor:
        """M^-1 b, or M^-T b, of each row of b, (B, N) -> (B, N) in the precision and on the device of b."""
        from scipy.sparse.linalg import splu

        if self._factor is None:
            self._factor = splu(self.matrix)
        right = np.ascontiguousarray(b.detach().cpu().double().numpy().T)
        solved = self._factor.solve(right, trans="T" if transposed else "N")
        return torch.from_numpy(np.ascontiguousarray(solved.T)).to(b)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_factor": None}
