"""`doctor`: what it shows is what the machine has."""

import platform
import socket
from importlib.metadata import version
from pathlib import Path

import pytest

from cl_clipfit.cli.app import main


@pytest.mark.parametrize("online", [True, False])
def test_versions_caches_and_the_network_are_shown(
    online: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "data" / "dtd").mkdir(parents=True)
    monkeypatch.setenv("CL_CLIPFIT_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    asked = []

    def connect(address: tuple[str, int], timeout: float) -> socket.socket:
        asked.append(address)
        if not online:
            raise OSError("no route")
        return socket.socket()

    monkeypatch.setattr(socket, "create_connection", connect)
    assert main(["doctor"]) == 0
    lines = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert lines["torch"] == version("torch")
    assert lines["python"] == platform.python_version()
    assert lines["data"].startswith(f"{tmp_path / 'data'} (dtd; ")
    assert lines["data"].endswith(" free)")
    assert lines["runs"] == "no folder of this name here"
    assert lines["network"].endswith("is reachable" if online else "is not reachable")
    assert len(asked) == 1
