"""Shared pieces."""


class Killed(BaseException):
    """Stands for a kill: nothing of the run's own code runs after it but clean-up."""
