"""Reading and writing files; nothing is ever left half written.

Readers and writers of arrays are in `invdiff.io.images`.
"""

from ..core.files import atomic
from .images import Array, hdf5_bytes, read_array, write_hdf5, write_nifti

__all__ = ["Array", "atomic", "hdf5_bytes", "read_array", "write_hdf5", "write_nifti"]
