"""The HTML report in a browser, and at the end of commands."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cl_clipfit import RunConfig, load_results, run
from cl_clipfit.cli.app import main
from cl_clipfit.report.html import write
from cl_clipfit.storage.manifest import adding
from tests.support.results import save_run, whole_result
from tests.support.tiny import TINY, TRAINED

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
QUIET = ["--tasks", "2", "--epochs", "1", "--quiet"]

needs_browser = pytest.mark.skipif(
    BROWSER is None, reason=f"no browser is installed: {', '.join(NAMES)}, or CHROMIUM=PATH"
)
# What a page could be asked in the browser itself; the page has no script of its own.
PROBE = """<script>
addEventListener("load", () => {
  const tall = s => [...document.querySelectorAll(s)].map(e => e.getBoundingClientRect());
  document.title = JSON.stringify({
    charts: tall(".chart svg").filter(r => r.height > 100 && r.width > 200).length,
    lines: document.querySelectorAll(".chart svg path[stroke-dasharray]").length,
    scrolled: [...document.querySelectorAll(".heat .scroll")]
      .filter(e => e.scrollWidth > e.clientWidth).length,
    wide: document.documentElement.scrollWidth - innerWidth,
    broken: [...document.images].filter(i => !i.naturalWidth).length,
    requests: performance.getEntriesByType("resource").filter(r => !r.name.startsWith("data:")),
    shut: [...document.querySelectorAll("details:not([open])")].length,
    focusable: document.querySelectorAll("a[href], summary, [tabindex='0']").length,
  });
});
</script>"""


def browse(page: Path, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Open a page in a headless browser; what the console shows goes to stderr."""
    assert BROWSER is not None
    return subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
         "--enable-logging=stderr", "--no-first-run", f"--user-data-dir={folder / 'profile'}",
         "--disable-background-networking", f"--log-net-log={folder / 'net.json'}", *options,
         page.as_uri()],
        capture_output=True, text=True, timeout=100, check=True,
    )  # fmt: skip


def requests(folder: Path) -> list[str]:
    """Return what the page asked the network for; the browser itself asks its maker for things."""
    log = json.loads((folder / "net.json").read_text())
    kind = log["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    started = [e["params"] for e in log["events"] if e["type"] == kind and "params" in e]
    urls = [p["url"] for p in started if p.get("initiator", "not an origin") != "not an origin"]
    return list(dict.fromkeys(url for url in urls if not url.startswith(("file:", "data:"))))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for label in ("clipfit", "full", "zero-shot"):
        save_run(folder, whole_result(label))
    return load_results(folder).write_report(folder)


@needs_browser
def test_a_browser_shows_it_without_an_error_or_a_request(page: Path, tmp_path: Path) -> None:
    done = browse(page, tmp_path, "--dump-dom")
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert console == []
    assert done.stdout.count("<svg") > 5
    assert requests(tmp_path) == []
    asking = tmp_path / "asking.html"
    asking.write_text('<img src="http://127.0.0.1:9/a.png"><script>throw Error("seen")</script>')
    done = browse(asking, tmp_path, "--dump-dom")  # what is looked for would be found
    assert "CONSOLE" in done.stderr
    assert requests(tmp_path) == ["http://127.0.0.1:9/a.png"]


def probe(page: Path, folder: Path, width: int) -> dict[str, Any]:
    """Return what a browser knows of a page in a window of some width."""
    asked = folder / "asked.html"
    text = page.read_text(encoding="utf-8")
    policy, _, rest = text.partition('<meta http-equiv="Content-Security-Policy"')
    asked.write_text(policy + rest.partition(">")[2].replace("</body>", f"{PROBE}</body>"))
    done = browse(asked, folder, "--dump-dom", f"--window-size={width},900")
    found: dict[str, Any] = json.loads(done.stdout.partition("<title>")[2].partition("</title>")[0])
    return found


@needs_browser
def test_tables_of_many_layers_have_the_whole_width(tmp_path: Path) -> None:
    tower = {f"clip.visual.transformer.resblocks.{n}": 0.1 for n in range(12)}
    moved = [{**tower, "clip.visual.ln_pre": 0.1, "clip.visual.positional_embedding": 0.1}] * 3
    save_run(tmp_path, whole_result("full", change_by_layer=moved))
    page = load_results(tmp_path).write_report(tmp_path)
    assert probe(page, tmp_path, 1250)["scrolled"] == 0
    assert probe(page, tmp_path, 500)["scrolled"] > 0  # what is looked for would be found


@needs_browser
def test_charts_are_drawn_and_a_narrow_screen_is_not_scrolled(page: Path, tmp_path: Path) -> None:
    found = probe(page, tmp_path, 500)
    assert found["charts"] >= 5
    assert found["lines"] >= 12
    assert found["wide"] <= 0
    assert found["broken"] == 0
    assert found["requests"] == []
    assert found["focusable"] > 20


def test_a_command_ends_with_its_report(
    written_reports: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = [*TINY, "--strategy", "zero-shot", "image-norms", *QUIET, "--output", str(tmp_path)]
    assert main(both) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"report: {tmp_path}/tiny-stream-report.html"
    text = (tmp_path / "tiny-stream-report.html").read_text(encoding="utf-8")
    assert "image-norms, after task 2" in text
    assert "after its task" in text  # examples, with their pictures
    assert main([*TRAINED, *QUIET, "--output", str(tmp_path)]) == 0  # shown again
    (folder,) = tmp_path.glob("*image-norms*")
    assert capsys.readouterr().out.splitlines()[-1] == f"report: {folder}/report.html"
    assert main(["verify", str(folder)]) == 0
    assert main(["report", str(folder), "--figures", str(folder / "figures")]) == 0
    assert main(["verify", str(folder)]) == 0


def test_a_report_that_fails_ends_no_command(
    written_reports: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def fail(*_: object) -> None:
        raise RuntimeError("of the\nlibrary")

    monkeypatch.setattr(write, "render", fail)
    (tmp_path / "tiny-stream-report.html").write_text("of an earlier command")
    command = [*TINY, *QUIET, "--output", str(tmp_path), "--strategy", "zero-shot"]
    assert main([*command, "full"]) == 0
    shown = capsys.readouterr()
    line = "warning: the report tiny-stream-report.html is missing: RuntimeError: of the library"
    assert line in shown.err
    assert "report:" not in shown.out
    assert not (tmp_path / "tiny-stream-report.html").exists()
    (run,) = tmp_path.glob("*-zero-shot-*")
    with adding(run):
        (run / "report.html").write_text("of an earlier command")
    assert main(command) == 0
    assert "report:" not in capsys.readouterr().out
    assert not (run / "report.html").exists()
    assert main(["verify", str(run)]) == 0


def test_python_writes_the_same_report(written_reports: None, tmp_path: Path) -> None:
    plugins = [Path(word) for word in TINY if word.endswith(".py")]
    config = RunConfig(scenario="tiny-stream", strategy=["zero-shot"], tasks=2, plugin=plugins,
                       output=tmp_path)  # fmt: skip
    (result,) = run(config)
    assert (result.path / "report.html").is_file()
