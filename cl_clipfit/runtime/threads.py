"""How threads of PyTorch wait for each other. Loaded before PyTorch: it imports nothing heavy."""

import os

# GNU OpenMP, which PyTorch uses on Linux, lets a thread that waits spin for 3 ms before it sleeps.
# Where another process needs the core, that is what each parallel operation then takes: two runs on
# one machine took up to 60 times as long as one. About 10 us are enough for a core of its own.
_SPIN_COUNT = "1000"
_WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def yield_waiting_cores() -> None:
    """Let threads that wait sleep soon, unless the environment says how they wait.

    Call this before PyTorch is imported: OpenMP reads the environment when it is loaded.
    """
    if not any(name in os.environ for name in _WAITING):
        os.environ["GOMP_SPINCOUNT"] = _SPIN_COUNT
