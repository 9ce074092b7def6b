"""From a radar image to optical ones, before and after distillation: a teacher of 250 evaluations and its student of 1 to 8.

    python examples/sar_to_optical.py [--items 32] [--steps 250] [--out FILE.png] [--tiny]

Made-up land cover that neither network has seen. Printed for each number of evaluations are PSNR and SSIM of one draw against
the optical image, the Frechet distance of random convolutional features of draws and images, seconds for an image, and how many
times faster that is than the teacher. The figure shows three scenes.
"""

import argparse
from pathlib import Path

from matplotlib.figure import Figure

import invdiff
from invdiff import Problem
from invdiff.generators import LandCover
from invdiff.learning import compare
from invdiff.samplers import Euler, Guided, Multistep

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--items", type=int, default=32)
parser.add_argument("--steps", type=int, default=250)
parser.add_argument("--out", type=Path, default=Path("outputs/sar_to_optical.png"))
parser.add_argument("--tiny", action="store_true")
given = parser.parse_args()
items, size, steps = (26, 32, 3) if given.tiny else (max(given.items, 26), 128, given.steps)

teacher, student = invdiff.prior("sar_optical"), invdiff.prior("sar_optical_fast")
scenes = LandCover(seed=2_000_000, size=size, looks=4.0)(range(items))
told = [{"concat": sar} for sar in scenes["sar"]]
rows = compare(teacher.prior, student.prior, scenes["optical"], told, teacher_steps=steps)
print(f"{'':<8} evaluations   PSNR    SSIM   Frechet   seconds   times faster")
for row in rows:
    faster = rows[0]["seconds"] / row["seconds"]
    numbers = f"{row['psnr']:6.2f}  {row['ssim']:6.3f}  {row['fid']:8.4f}  {row['seconds']:8.3f}"
    print(f"{row['model']:<8} {row['steps']:11d}  {numbers}  {faster:13.0f}")

three = {name: field[:3] for name, field in scenes.items()}
columns = {"radar, 4 looks": three["sar"], "optical": three["optical"]}
samplers = {f"teacher, {steps}": (teacher, Guided(steps=steps, integrator=Euler()))}
samplers |= {f"student, {k}": (student, Multistep(steps=k)) for k in (1, 4)}
problem = Problem.unmeasured((3, size, size))
for name, (prior, sampler) in samplers.items():
    columns[name] = sampler(problem, prior.tell({"sar": three["sar"]}), 3, seed=0).x
figure = Figure(figsize=(2.2 * len(columns), 6.8), layout="constrained")
axes = figure.subplots(3, len(columns))
for column, (name, images) in zip(axes.T, columns.items(), strict=True):
    column[0].set_title(name, fontsize=9)
    for axis, image in zip(column, images, strict=True):
        grey = image.shape[0] == 1
        look = {"cmap": "gray", "vmin": -5.0, "vmax": 1.0} if grey else {}
        axis.imshow((image[0] if grey else image.clamp(0.0, 1.0).movedim(0, -1)).numpy(), **look)
        axis.axis("off")
given.out.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(given.out, dpi=90)
print(given.out)
