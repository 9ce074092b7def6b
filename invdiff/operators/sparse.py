"""Sparse matrices as torch tensors, with their transposes."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["csr_pair", "to_torch"]


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
