"""How threads of PyTorch wait for each other."""

import os

import pytest

from cl_clipfit.cli.app import main
from cl_clipfit.runtime.threads import yield_waiting_cores

NAMES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


@pytest.mark.parametrize(
    ("given", "then"),
    [
        ({}, {"GOMP_SPINCOUNT": "1000"}),
        ({"GOMP_SPINCOUNT": "5"}, {"GOMP_SPINCOUNT": "5"}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
    ],
)
def test_a_command_sets_how_threads_wait_unless_the_user_has(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], then: dict[str, str]
) -> None:
    monkeypatch.setattr(os, "environ", {**os.environ})
    for name in NAMES:
        os.environ.pop(name, None)
    os.environ.update(given)
    assert main(["list", "strategies", "nothing"]) == 2
    assert {name: os.environ[name] for name in NAMES if name in os.environ} == then
    yield_waiting_cores()  # a second time changes nothing
    assert {name: os.environ[name] for name in NAMES if name in os.environ} == then
