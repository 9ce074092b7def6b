"""Reading and writing files; nothing is ever left half written.

Readers and writers of arrays are in `invdiff.io.images`, readers of sets of fields in `invdiff.io.fields`.
"""

from ..core.files import atomic
from .fields import Fields, read_fields
from .images import Array, hdf5_bytes, read_array, write_hdf5, write_nifti

__all__ = ["Array", "Fields", "atomic", "hdf5_bytes", "read_array", "read_fields", "write_hdf5", "write_nifti"]
