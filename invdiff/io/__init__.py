"""Reading and writing files; nothing is ever left half written.

Readers and writers of arrays are in `invdiff.io.images`.
"""

from ..core.files import atomic
from .images import Array, read_array, write_hdf5, write_nifti

__all__ = ["Array", "atomic", "read_array", "write_hdf5", "write_nifti"]
