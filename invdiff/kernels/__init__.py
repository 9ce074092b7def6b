"""Fused kernels: operations for which torch makes several passes or keeps several tensors.

Each has a torch form, which runs everywhere, and a Triton form, for CUDA, which runs where it is switched on (`dispatch`). Each
is registered with `torch.library`, has a form for tensors without data, and computes again what its backward pass can.
"""

from .dispatch import NAMES, disable, enable, enabled, use_triton, using
from .gates import geglu, silu_gate
from .group_norm import group_norm_silu
from .projector import ConeBeam, FanBeam, ParallelBeam, backproject, project
from .update import sampler_update

__all__ = [
    "NAMES",
    "ConeBeam",
    "FanBeam",
    "ParallelBeam",
    "backproject",
    "disable",
    "enable",
    "enabled",
    "geglu",
    "group_norm_silu",
    "project",
    "sampler_update",
    "silu_gate",
    "use_triton",
    "using",
]
