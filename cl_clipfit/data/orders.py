"""Class orders by name, and the cut of an order into tasks."""

import re

import numpy as np

from cl_clipfit.errors import UserError, nearest

NAMED_ORDERS = ("natural", "pycil-1993")


def class_order(name: str, classes: int) -> list[int]:
    """Return the original labels 0..classes-1 in order of arrival.

    Args:
        name: `natural`; `pycil-1993`, the order of PyCIL, PROOF and their successors, which is
            `numpy.random.RandomState(1993).permutation`; or `seed:N`, the same with another seed.
        classes: number of classes.

    Raises:
        UserError: an unknown name.

    Example:
        >>> class_order("pycil-1993", 100)[:5]
        [68, 56, 78, 8, 23]
    """
    if name == "natural":
        return list(range(classes))
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
