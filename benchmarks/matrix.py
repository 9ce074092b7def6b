"""docs/matrix.md: every packaged sampler on every packaged task, tried at tiny size.

python benchmarks/matrix.py [TASK ...]      # three minutes; of the tasks that are named only, the others stay as they are
"""

import argparse
import warnings
from pathlib import Path

import torch

from invdiff.configs import names
from invdiff.validation.matrix import column, page, parse

PAGE = Path(__file__).parents[1] / "docs" / "matrix.md"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="TASK", default=names("task"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    known = parse(PAGE.read_text()) if PAGE.exists() and set(given.tasks) != set(names("task")) else {}
    for task in given.tasks:
        print(task, flush=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            known[task] = column(task)
    PAGE.write_text(page(dict(sorted(known.items()))))


if __name__ == "__main__":
    main()
