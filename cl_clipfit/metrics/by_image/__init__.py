"""Metrics of single predictions, a file each; `run.py compare --metric NAME` shows them.

A file has a docstring and a function `metric(rows, result)`: `rows` are the run's `Predictions`,
before training and after each task, and `result` is the content of its `result.json`. It returns a
number, in percent if it is a share, or None where the number is undefined. Literals steer the
table: `NAME` (default: the file's name with "-" for "_"), `TITLE` of the column, and
`LOWER_IS_BETTER = True`.
"""
