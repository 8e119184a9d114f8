"""Twelve runs on each engine: equal to those of one process, whatever dies on the way."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cl_clipfit.cli.app import main
from cl_clipfit.report.results import load_results
from cl_clipfit.sweep.engines import Share
from cl_clipfit.sweep.job import Job
from cl_clipfit.sweep.on_ray import RayTasks, pack, unpack
from tests.support.light_work import light_work
from tests.support.sweeps import bits, interrupt, run_in_this_process, write_sweep


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], dict[str, Any]]:
    """Return the folder of a sweep file, its command, and the bits of its runs in one process."""
    folder = tmp_path_factory.mktemp("sweep")
    file, plugin = write_sweep(folder)
    command = ["sweep", str(file), "--plugin", str(plugin), "--threads", "1"]
    alone = {result.path.name: bits(result) for result in run_in_this_process(folder)}
    assert len(alone) == 12
    return folder, command, alone


def swept(output: Path) -> dict[str, Any]:
    return {result.path.name: bits(result) for result in load_results(output)}


Sweep = tuple[Path, list[str], dict[str, Any]]


def test_local_workers_die_and_stop_and_the_sweep_resumes(
    sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, command, alone = sweep
    interrupt(folder, 0, "SIGKILL")
    interrupt(folder, 2, "parent")
    command = [*command, "--output", str(tmp_path), "--workers", "1"]
    assert main(command) == 143  # what runs is completed to its next checkpoint, then it ends
    output = capsys.readouterr().err
    assert "1/12 features fragile seed 0: failed: its worker process died" in output
    assert "2/12 features fragile seed 1: average accuracy" in output
    assert "stopped by SIGTERM: the same command resumes the sweep" in output

    assert main(command) == 0
    output = capsys.readouterr()
    assert "12/12" in output.err and "fragile seed 1" not in output.err
    assert "12 of 12 runs are finished" in output.out and "mean of 3 seeds" in output.out
    assert swept(tmp_path) == alone

    assert main(command) == 0
    again = capsys.readouterr()
    assert again.err == "" and again.out == output.out


def test_submitit_does_the_runs_and_repeats_a_job_that_is_preempted(
    sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("submitit")
    folder, command, alone = sweep
    file = tmp_path / "sweep.yaml"
    file.write_text(Path(command[1]).read_text() + "slurm: {runs_per_job: 6}\n")
    interrupt(folder, 1, "SIGUSR2")  # how SLURM announces that it takes the node away
    command = ["sweep", str(file), *command[2:], "--output", str(tmp_path / "runs")]
    assert main([*command, "--engine", "slurm", "--workers", "1"]) == 0
    output = capsys.readouterr()
    assert "no SLURM here" in output.err and "12 of 12 runs are finished" in output.out
    assert swept(tmp_path / "runs") == alone
    assert not [*(folder / "marks").iterdir()]


def test_ray_nodes_do_the_runs_without_a_shared_folder_and_one_dies(
    sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    folder, command, alone = sweep
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    interrupt(folder, 0, "SIGKILL")
    interrupt(folder, 2, "parent")  # a node
    node = {"object_store_memory": 80 << 20}
    cluster = Cluster(
        initialize_head=True, head_node_args={**node, "num_cpus": 0, "include_dashboard": False}
    )
    try:
        # Connected while the head is alone: of several nodes of one address Ray takes any, and this
        # process ends with its own.
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        for _ in range(2):
            cluster.add_node(num_cpus=1, num_gpus=1, **node)
        assert main([*command, "--output", str(tmp_path), "--engine", "ray"]) == 0
        jobs = [Job(f"{n}", "", f"run {n}", "", {}, tmp_path / "light") for n in range(2)]
        tasks = RayTasks(Share(gpus=0.5), on_gpu=True)
        states = [e.outcome.state for e in tasks.events(jobs, light_work) if e.outcome]
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert "12 of 12 runs are finished" in capsys.readouterr().out
    assert swept(tmp_path) == alone
    assert not [*(folder / "marks").iterdir()]
    assert states == ["done", "done"]  # half of a GPU each, of the node that is left
    assert (tmp_path / "light/1/gpus.txt").read_text() == "0"


def test_workers_know_their_cores_before_pytorch_is_imported() -> None:
    code = (
        "import sys; from cl_clipfit.sweep import local_pool, on_slurm, on_ray;"
        "print([m for m in ('torch', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("engine", "library"), [("slurm", "submitit"), ("ray", "ray")])
def test_an_engine_whose_library_is_missing_says_how_to_install_it(
    tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, engine: str,
    library: str,
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, library, None)
    (tmp_path / "s.yaml").write_text("common: {strategy: lda}")
    line = refused("sweep", tmp_path / "s.yaml", "--engine", engine, "--output", tmp_path / "o")
    assert line.startswith(f"error: {library} is not installed: pip install 'cl_clipfit[{engine}]'")


@pytest.mark.parametrize(
    ("slurm", "line"),
    [
        ("{partitionn: a}", "slurm: Unknown argument 'partitionn'"),
        ("{timeout_min: soon}", "timeout_min"),
        ("{runs_per_job: 0}", "slurm.runs_per_job: 0: expected at least 1"),
        ("[partition]", "line 2: slurm: expected settings"),
    ],
)
def test_wrong_parameters_of_slurm_are_refused(
    tmp_path: Path, refused: Callable[..., str], slurm: str, line: str
) -> None:
    pytest.importorskip("submitit")
    (tmp_path / "s.yaml").write_text(f"common: {{strategy: lda}}\nslurm: {slurm}\n")
    command = ("sweep", tmp_path / "s.yaml", "--engine", "slurm", "--output", tmp_path / "o")
    assert line in refused(*command)


def test_a_folder_from_a_node_replaces_half_a_run(tmp_path: Path) -> None:
    (tmp_path / "node/bank").mkdir(parents=True)
    (tmp_path / "node/bank/a").write_text("new")
    target = tmp_path / "run"
    (target / "old").mkdir(parents=True)
    unpack(pack(tmp_path / "node"), target)
    assert (target / "bank/a").read_text() == "new" and not (target / "old").exists()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["node", "run"]
