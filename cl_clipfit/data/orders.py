"""Class orders by name, and the cut of an order into tasks."""

import re

import numpy as np

from cl_clipfit.errors import UserError, nearest

# Of published results with OpenAI's weights: Continual-CLIP, ZSCL, MoE-Adapters, RAPF, MG-CLIP.
DER_CIFAR100 = (
    87, 0, 52, 58, 44, 91, 68, 97, 51, 15, 94, 92, 10, 72, 49, 78, 61, 14, 8, 86, 84, 96, 18, 24,
    32, 45, 88, 11, 4, 67, 69, 66, 77, 47, 79, 93, 29, 50, 57, 83, 17, 81, 41, 12, 37, 59, 25, 20,
    80, 73, 1, 28, 6, 46, 62, 82, 53, 9, 31, 75, 38, 63, 33, 74, 27, 22, 36, 3, 16, 21, 60, 19,
    70, 90, 89, 43, 5, 42, 65, 76, 40, 30, 23, 85, 2, 95, 56, 48, 71, 64, 98, 13, 99, 7, 34, 55,
    54, 26, 35, 39
)  # fmt: skip
NAMED_ORDERS = ("natural", "pycil-1993", "der-cifar100")


def class_order(name: str, classes: int) -> list[int]:
    """Return the original labels 0..classes-1 in order of arrival.

    Args:
        name: `natural`; `pycil-1993`, the order of PyCIL, PROOF and their successors, which is
            `numpy.random.RandomState(1993).permutation`; `der-cifar100`, the order of 100 classes
            of DER (Yan et al. 2021), RAPF and others; or `seed:N`, as pycil-1993 with seed N.
        classes: number of classes.

    Raises:
        UserError: an unknown name, or an order of another number of classes.

    Example:
        >>> class_order("pycil-1993", 100)[:5]
        [68, 56, 78, 8, 23]
    """
    if name == "natural":
        return list(range(classes))
    if name == "der-cifar100":
        if classes != len(DER_CIFAR100):
            raise UserError(f"--class-order {name}: an order of 100 classes, not of {classes}")
        return list(DER_CIFAR100)
    seeded = re.fullmatch(r"seed:(\d+)", "seed:1993" if name == "pycil-1993" else name)
    if seeded and int(seeded[1]) < 2**32:
        return np.random.RandomState(int(seeded[1])).permutation(classes).tolist()
    if name.startswith("seed:"):
        raise UserError(f"--class-order {name}: N in seed:N must be from 0 to {2**32 - 1}")
    raise UserError(f"unknown class order '{name}'. {nearest(name, [*NAMED_ORDERS, 'seed:N'])}")


def split_tasks(classes: int, tasks: int) -> list[list[int]]:
    """Cut arrival labels 0..classes-1 into `tasks` runs; earlier tasks take the remainder.

    Raises:
        UserError: more tasks than classes.

    Example:
        >>> split_tasks(10, 3)
        [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9]]
    """
    if tasks > classes:
        raise UserError(f"--tasks {tasks}: there are only {classes} classes")
    return [part.tolist() for part in np.array_split(np.arange(classes), tasks)]
