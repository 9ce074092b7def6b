"""Reading and writing files; nothing is ever left half written.

Readers and writers of arrays are in `invdiff.io.images`, readers of sets of fields in `invdiff.io.fields`.
"""

from ..core.files import atomic
from .fields import Fields, read_fields
from .images import Array, hdf5_bytes, read_array, write_hdf5, write_nifti
from .sar import PhaseData, read_gotcha, read_phase_history
from .sar_formats import read_cphd, read_sicd
from .sar_images import ComplexImage, read_complex_image, write_complex_image

__all__ = [
    "Array",
    "ComplexImage",
    "Fields",
    "PhaseData",
    "atomic",
    "hdf5_bytes",
    "read_array",
    "read_complex_image",
    "read_cphd",
    "read_fields",
    "read_gotcha",
    "read_phase_history",
    "read_sicd",
    "write_complex_image",
    "write_hdf5",
    "write_nifti",
]
