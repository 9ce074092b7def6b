"""How wrong the approximate modes of a phase history are, against the exact operator.

    python benchmarks/sar_modes.py [--tiny]

A white scene, X band, 10.16 km, 45.7 degrees, an arc of one degree; relative errors of the phase history.
"""

import argparse
import math

import torch

from invdiff.core import Streams
from invdiff.operators import form_image, plane_wave, polar_format, spotlight

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--tiny", action="store_true")
side = 8 if parser.parse_args().tiny else 32
print("scene, m   plane wave   with a screen")
for extent in (8.0, 30.0, 50.0):
    options = {"pulses": side, "frequencies": 48, "aperture": math.radians(1.0), "elevation": 0.798, "distance": 10_160.0}
    exact = spotlight((side, side), extent / (side - 1), **options)
    x = Streams(0).normal(0, (1, side, side), "scene", torch.complex128)
    y = exact(x)
    errors = [float((plane_wave(exact, screen=s)(x) - y).norm() / y.norm()) for s in (False, True)]
    print(f"{extent:8.0f}   {errors[0]:10.3f}   {errors[1]:13.4f}")
exact = spotlight((3 * side, 3 * side), 0.25, pulses=3 * side, frequencies=3 * side, aperture=0.05)
y = exact(Streams(0).normal(0, exact.in_shape, "scene", torch.complex128))
image = form_image(exact, y)
apart = float((polar_format(exact, y) - image).norm() / image.norm())
print(f"polar format against back-projection, {0.75 * side:.0f} m: {apart:.3f}")
