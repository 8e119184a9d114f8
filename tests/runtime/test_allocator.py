"""Freed memory stays with the process."""

import subprocess
import sys

import pytest

from cl_clipfit.runtime.allocator import keep_freed_memory

FAULTS = """
import resource, sys
from cl_clipfit.runtime.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
import torch
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(30):  # a block above the size from which glibc maps each on its own
    torch.ones(16, 1024, 1024)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc")
def test_a_block_is_not_mapped_anew_each_time() -> None:
    faults = {}
    for kind in ("system", "kept"):
        done = subprocess.run(
            [sys.executable, "-c", FAULTS, kind], capture_output=True, text=True, check=True,
            env={"PATH": "", "THP_MEM_ALLOC_ENABLE": "0"},
        )  # fmt: skip
        faults[kind] = int(done.stdout)
    assert faults["system"] > 30 * 1000
    assert faults["kept"] < faults["system"] / 3


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    assert not keep_freed_memory()
