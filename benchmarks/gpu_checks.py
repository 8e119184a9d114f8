"""What `benchmarks.gpu` checks for real: memory that runs out, NaN, equal bits, two GPUs."""

import contextlib
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from benchmarks import ours, timing
from benchmarks.budget import Report
from benchmarks.gpu_steps import Bench
from cl_clipfit.clip.classifier import CLIPClassifier
from cl_clipfit.errors import UserError
from cl_clipfit.runtime.determinism import deterministic, exact_fp32
from cl_clipfit.runtime.out_of_memory import fits, in_batches, release
from cl_clipfit.training.loss_watch import Batch, DivergedError, LossWatch

MEMORY = 16e9  # bytes of a GPU that may be used while its memory is made to run out
TOO_MUCH = 1.5  # times the images that would fill the memory
SIMULATED = 3  # images that "fit" on a CPU, whose memory must not run out
STEPS = 5  # of which two runs are compared
WATCHED, WRONG = 12, 5  # steps that are watched, and the one whose loss is NaN


# ---- memory --------------------------------------------------------------------------------------


def memory_retry(bench: Bench, report: Report, model: str) -> None:
    """Give a step and an evaluation more images than fit, and report how often they were halved."""
    classifier = bench.trained(model)
    if not bench.cuda:
        _pretend_memory(classifier, SIMULATED)
    with _little_memory(bench):
        report("training", _retried_step(bench, classifier, model))
        release()
        report("evaluation", _retried_evaluation(bench, classifier, model))


@contextlib.contextmanager
def _little_memory(bench: Bench) -> Iterator[None]:
    """Let PyTorch's allocator give out `MEMORY` bytes at most, and then fail as it does when full.

    With all the memory of a large GPU, a batch that does not fit has more images than some kernels
    take, whatever the memory.
    """
    if not bench.cuda:
        yield
        return
    total = torch.cuda.get_device_properties(bench.device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, MEMORY / total), bench.device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, bench.device)


def _retried_step(bench: Bench, classifier: CLIPClassifier, model: str) -> dict[str, Any]:
    """Take a step as `training/loop.py` does: with half as many images at a time until it fits."""

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        return ours.clipfit_loss(classifier, images, labels)

    def take(count: int) -> None:
        images, labels = bench.batch(model, count)
        loss(images, labels).backward()

    count = _too_many(bench, take)
    images, labels = bench.batch(model, count)
    kept: list[float] = []

    def passes() -> None:
        found = loss(images, labels)
        found.backward()
        kept.append(float(found.detach()))

    tried, begin = [count], time.perf_counter()
    while not fits(passes):
        if tried[-1] == 1:
            raise UserError("one image at a time does not fit")
        classifier.micro_batch = (tried[-1] + 1) // 2
        tried.append(classifier.micro_batch)
        for parameter in classifier.parameters():
            parameter.grad = None
        release()
    timing.wait(bench.device)
    seconds = time.perf_counter() - begin
    classifier.micro_batch = None
    return {
        "images": count, "images_at_a_time": tried, "seconds": seconds, "simulated": not bench.cuda,
        "finite": bool(torch.tensor(kept[-1]).isfinite()), "ran_out_of_memory": len(tried) > 1,
    }  # fmt: skip


def _retried_evaluation(bench: Bench, classifier: CLIPClassifier, model: str) -> dict[str, Any]:
    """Score more images at a time than fit, by the routine of every evaluation."""
    one = bench.batch(model, 1)[0]

    @torch.no_grad()
    def score(images: Tensor) -> Tensor:
        return classifier(images)

    count = _too_many(bench, lambda count: score(one.expand(count, -1, -1, -1).clone()))
    images = one.expand(count, -1, -1, -1)  # one image in memory
    begin = time.perf_counter()
    scores, size = in_batches(score, images, bench.device, count)
    timing.wait(bench.device)
    seconds = time.perf_counter() - begin
    return {
        "images": count, "images_at_a_time": size, "seconds": seconds, "simulated": not bench.cuda,
        "finite": bool(scores.isfinite().all()), "ran_out_of_memory": size < count,
    }  # fmt: skip


def _too_many(bench: Bench, take: Callable[[int], Any]) -> int:
    """Return how many images surely do not fit, from the peaks of a few and of twice as many."""
    if not bench.cuda:
        return 4 * SIMULATED
    peaks = []
    for count in (16, 32, 64):  # the first pass also allocates what is kept
        release()
        torch.cuda.reset_peak_memory_stats(bench.device)
        take(count)
        peaks.append(torch.cuda.max_memory_allocated(bench.device))
    each = max(1.0, (peaks[2] - peaks[1]) / 32)
    total = torch.cuda.get_device_properties(bench.device).total_memory
    return int(TOO_MUCH * min(total, MEMORY) / each)


def _pretend_memory(classifier: CLIPClassifier, most: int) -> None:
    """Let a tower fail with more than some images, as a GPU does whose memory runs out."""
    encode = classifier._encode_images

    def limited(inputs: Tensor, embedded: bool) -> Tensor:
        if len(inputs) > most:
            raise RuntimeError("out of memory (simulated)")
        return encode(inputs, embedded)

    vars(classifier)["_encode_images"] = limited


# ---- NaN -----------------------------------------------------------------------------------------


class _Watch(LossWatch):
    """The watch of every run; of a loss that is NaN it says when, and not which images."""

    def _stop(self, strategy: Any, loss: float, about: Batch) -> None:
        raise DivergedError(f"the loss is {loss}", about)


def nan_watch(bench: Bench, report: Report, model: str) -> None:
    """Report how many steps after a loss that is NaN the watch ends the run, and what it costs."""
    images, labels = bench.batch(model, 2 * SIMULATED)
    classifier = bench.trained(model)
    watched = SimpleNamespace(mb_y=labels, task_number=1, plugin_loss=torch.zeros(1))

    def take(watch: LossWatch | None, number: int, batch: Tensor) -> None:
        loss = ours.clipfit_loss(classifier, batch, labels)
        loss.backward()
        if watch is not None:
            vars(watched).update(loss=loss, method_loss=loss.detach(), task_steps=number)
            watch.leaves_out(watched, batch)  # type: ignore[arg-type]

    watch = _Watch()
    ways = {"alone": lambda: take(None, 0, images), "watched": lambda: take(watch, 0, images)}
    seconds = timing.medians(timing.take_turns(ways, WATCHED, bench.device))
    report("seconds_of_a_step", seconds)
    watch, wrong = _Watch(), images.clone()
    wrong[0, 0, 0, 0] = torch.nan
    taken = 0
    try:
        for number in range(1, WATCHED + 1):
            taken = number
            take(watch, number, wrong if number == WRONG else images)
        watch.flush(watched)  # type: ignore[arg-type]
        noticed = 0
    except DivergedError as error:
        noticed = error.batch["step"]
    report("watch", {"nan_in_step": WRONG, "noticed": noticed, "steps_taken": taken})
    if noticed != WRONG:
        raise UserError(f"the loss of step {WRONG} is NaN, and the watch says {noticed or 'none'}")


# ---- equal bits ----------------------------------------------------------------------------------


def determinism(bench: Bench, report: Report, model: str) -> None:
    """Report whether two runs of some steps give the same bits, with --deterministic and without.

    Raises:
        UserError: an operation has no deterministic kernel.
    """
    images, labels = bench.batch(model, 2 * SIMULATED)

    def run() -> str:
        classifier = bench.trained(model)
        take = ours.step(classifier, lambda: ours.clipfit_loss(classifier, images, labels))
        for _ in range(STEPS):
            take()
        digest = hashlib.sha256()
        for name, parameter in classifier.named_parameters():
            if parameter.requires_grad:
                digest.update(name.encode() + parameter.detach().cpu().numpy().tobytes())
        return digest.hexdigest()

    with exact_fp32():
        report("equal_by_default", run() == run())
    with deterministic(True):
        first, second = run(), run()
    report("equal_with_deterministic", first == second)
    if first != second:
        raise UserError("two runs with --deterministic differ")


# ---- two GPUs ------------------------------------------------------------------------------------


def all_reduce(bench: Bench, report: Report) -> None:
    """Time the sum over all GPUs of what CLIPFit trains, if there are two or more."""
    gpus = torch.cuda.device_count() if bench.cuda else 0
    if gpus < 2:
        report("skipped", f"it needs two GPUs, and there are {gpus}")
        return
    command = [sys.executable, "-m", "benchmarks.all_reduce", "--processes", str(gpus)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=50)
    if done.returncode:
        raise UserError((done.stderr.strip().splitlines() or ["no message"])[-1])
    for name, value in json.loads(done.stdout).items():
        report(name, value)
