"""Several commands started at once on one run folder, and on one cache of downloads."""

import functools
import http.server
import os
import random
import signal
import tarfile
import time
from pathlib import Path
from typing import Any

from benchmarks.faults.job import STRATEGIES, Bench, Campaign, Place, problem, run_job, start, wait
from cl_clipfit.data.fetch.archives import Archive, obtain
from cl_clipfit.data.fetch.download import file_checksum
from cl_clipfit.data.source import DataRequest
from cl_clipfit.errors import UserError

STARTERS = 3
FILES = {"set/a.bin": 300_000, "set/deep/b.bin": 5_000, "set/c.txt": 0}  # bytes
_READY_SECONDS = 20.0


def start_together(bench: Bench, campaign: Campaign, trials: int, draws: random.Random) -> None:
    """Start the same command several times, and the same download, some of them a little later."""
    server, folder = _serve(bench.folder, draws)
    try:
        for number in range(trials):
            with bench.place(f"start-{number}", campaign) as place:
                text = _race_for_run(bench, place, campaign, number, draws)
                campaign.end_trial(text or _race_for_data(place, folder, campaign, draws))
    finally:
        os.kill(server, signal.SIGTERM)
        os.waitpid(server, 0)


def _delays(draws: random.Random, most: float) -> list[float]:
    """Return seconds to wait: nearly together, or spread."""
    spread = draws.choice((0.0, most))
    return [draws.uniform(0, spread) for _ in range(STARTERS)]


def _race_for_run(
    bench: Bench, place: Place, campaign: Campaign, number: int, draws: random.Random
) -> str:
    """One process trains; every other one says who does, or shows the finished run."""
    strategy = STRATEGIES[number % len(STRATEGIES)]
    _, wanted, seconds = bench.unbroken(strategy)

    def work(delay: float) -> int:
        time.sleep(delay)
        return run_job(place, strategy)

    # They slow each other down: with this some come when the run is finished.
    delays = _delays(draws, 2 * seconds)
    children = [
        start(functools.partial(work, delay), place.log(f"run-{i}"))
        for i, delay in enumerate(delays)
    ]
    codes = [wait(child) for child in children]
    trained = 0
    for i, code in enumerate(codes):
        said = place.said(f"run-{i}")
        if code == 0:
            shown = "complete, shown again" in said
            trained += not shown
            campaign.count("shown_again" if shown else "trained")
        elif code == 2 and "is writing it: wait for it" in said and "Traceback" not in said:
            campaign.count("refused")
        else:
            return f"{place.folder.name}, starter {i}: {code}: {' '.join(said.split())[-300:]}"
    if trained != 1:
        return f"{place.folder.name}: {trained} processes trained"
    return problem(place, 0, wanted)


def _race_for_data(place: Place, served: Path, campaign: Campaign, draws: random.Random) -> str:
    """All processes have the whole data set, which is fetched once."""
    port = (served / "port").read_text()
    checksum = file_checksum(served / "set.tar")
    address = f"http://127.0.0.1:{port}/set.tar?{place.folder.name}"
    archive = Archive(address, checksum, name="set.tar")

    def work(delay: float) -> int:
        os.environ["CL_CLIPFIT_DATA"] = str(place.cache)
        time.sleep(delay)
        try:
            found = obtain("set", [archive], [*FILES], DataRequest())
        except UserError as error:
            print(error)
            return 2
        sizes = {name: (found.folder / name).stat().st_size for name in FILES}
        return 0 if sizes == FILES and found.origin["verified"] else 3

    children = [
        start(functools.partial(work, delay), place.log(f"data-{i}"))
        for i, delay in enumerate(_delays(draws, 0.1))
    ]
    codes = [wait(child) for child in children]
    if any(codes):
        said = " ".join(place.said(f"data-{i}") for i in range(STARTERS))
        return f"{place.folder.name}: exit codes {codes} of downloads: {said[-300:]}"
    with tarfile.open(served / "set.tar") as tar:
        for name in FILES:
            member: Any = tar.extractfile(name)
            if (place.cache / "set" / "files" / name).read_bytes() != member.read():
                return f"{place.folder.name}: {name} in the cache is not what was served"
    if (place.cache / "set" / "set.tar").read_bytes() != (served / "set.tar").read_bytes():
        return f"{place.folder.name}: the archive in the cache is not what was served"
    asked = (served / "asked").read_text().split().count(place.folder.name)
    campaign.count("downloads", asked)
    return "" if asked == 1 else f"{place.folder.name}: it was fetched {asked} times"


def _serve(folder: Path, draws: random.Random) -> tuple[int, Path]:
    """Start a process that serves an archive; return its id and its folder.

    Raises:
        UserError: it does not start.
    """
    served = folder / "served"
    for name, size in FILES.items():
        (served / name).parent.mkdir(parents=True, exist_ok=True)
        (served / name).write_bytes(draws.randbytes(size))
    with tarfile.open(served / "set.tar", "w") as tar:
        for name in FILES:
            tar.add(served / name, name)
    child = start(lambda: _server(served), served / "log")
    end = time.monotonic() + _READY_SECONDS
    while not (served / "port").exists():
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            raise UserError(f"the local server does not start: {(served / 'log').read_text()}")
        time.sleep(0.01)
    return child, served


def _server(served: Path) -> int:
    class Handler(http.server.SimpleHTTPRequestHandler):
        """Serves files, and writes down who asks."""

        def do_GET(self) -> None:
            """Note what comes after "?", and serve."""
            with (served / "asked").open("a") as file:
                file.write(f"{self.path.partition('?')[2]}\n")
            super().do_GET()

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    handler = functools.partial(Handler, directory=str(served))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        half = served / "port.new"
        half.write_text(str(server.server_address[1]))
        half.rename(served / "port")
        server.serve_forever()
    return 0
