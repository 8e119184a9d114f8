"""Every command that makes runs ends by naming the report of what it made."""

from collections.abc import Callable
from pathlib import Path

import pytest

from cl_clipfit.cli.app import main
from cl_clipfit.report.html import write
from tests.support.photos import write_photos
from tests.support.tiny import PLUGIN, TINY

QUICK = (*TINY, "--tasks", "2", "--epochs", "1", "--batch-size", "12", "--quiet")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("trained") / "runs"
    assert main([*QUICK, "--strategy", "lda", "--output", str(output)]) == 0
    (run,) = output.glob("*-lda-*")
    return run


@pytest.fixture
def ends(written_reports: None, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """Return a function: give a command; return the lines that it prints last."""

    def lines(*command: str | Path) -> list[str]:
        capsys.readouterr()
        assert main([str(word) for word in command]) == 0
        return capsys.readouterr().out.splitlines()[-2:]

    return lines


def test_an_extension_names_its_report(
    trained: Path, ends: Callable[..., list[str]], tmp_path: Path
) -> None:
    birds = write_photos(tmp_path / "birds", "crow", "owl")
    command = ["extend", trained, "--data-dir", birds, *PLUGIN]
    folder, report = ends(*command)
    run = Path(folder.removeprefix("run folder: "))
    assert run.parent == trained.parent and run != trained
    assert report == f"report: {run}/report.html"
    assert "owl (task 3)" in (run / "report.html").read_text(encoding="utf-8")
    assert ends(*command) == [folder, report]  # shown again
    assert main(["verify", str(run)]) == 0


def test_a_merge_names_the_report_of_both_runs(
    ends: Callable[..., list[str]], tmp_path: Path
) -> None:
    assert main([*QUICK, "--strategy", "image-norms", "--output", str(tmp_path)]) == 0
    (host,) = tmp_path.glob("*-image-norms-*")
    folder, report = ends("merge", host, "--method", "mean", *PLUGIN)
    run = Path(folder.removeprefix("run folder: "))
    assert report == f"report: {run}/report.html"
    page = (run / "report.html").read_text(encoding="utf-8")
    assert page.count("<article>") == 1
    assert "image-norms + mean, after task 2" in page and "image-norms, after task 2" in page
    assert main(["verify", str(run)]) == 0


def test_a_sweep_names_the_report_of_its_runs_alone(
    trained: Path, ends: Callable[..., list[str]], tmp_path: Path
) -> None:
    output = trained.parent
    both = [*QUICK, "--class-order", "seed:1", "seed:2", "--output", str(output)]
    assert main([*both, "--strategy", "simplecil"]) == 0
    file = tmp_path / "orders.yaml"
    file.write_text(
        "common: {scenario: tiny-stream, strategy: simplecil, tasks: 2, epochs: 1, batch_size: 12,"
        f" plugin: [{', '.join(PLUGIN[1:])}]}}\n"
        'grid: {class_order: ["seed:1", "seed:2"]}\n'
    )
    finished, report = ends("sweep", file, *PLUGIN, "--output", output)  # nothing is left to run
    assert finished == f"2 of 2 runs are finished, in {output}"
    assert report == f"report: {output}/orders-report.html"
    page = (output / "orders-report.html").read_text(encoding="utf-8")
    assert page.count("<article>") == 1 and "lda" not in page


def test_no_page_is_no_failure(
    trained: Path, ends: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "render", lambda _: 1 / 0)
    fish = write_photos(tmp_path / "fish", "eel")
    _, last = ends("extend", trained, "--data-dir", fish, *PLUGIN)
    assert last.startswith("run folder: ")
