"""The model card of a run: what it was made of, what it knows, and who may use it."""

from collections.abc import Sequence
from typing import Any

from cl_clipfit.clip.loading.licences import UNKNOWN
from cl_clipfit.storage.run_folder import stream_name

_METRICS = (
    ("average_accuracy", "average accuracy, %"),
    ("last_accuracy", "last accuracy, %"),
    ("forgetting", "forgetting, points"),
    ("retention", "retention, points"),
)
_SHOWN = 20  # classes of a task that are named


def model_card(
    result: dict[str, Any], *, title: str, model: str, licence: str, data_licence: str, usage: str
) -> str:
    """Return the card in Markdown, with the header that model hubs read.

    Args:
        result: content of the run's `result.json`.
        title: what the model is called.
        model: name of the pretrained model.
        licence: of its weights, an SPDX identifier or "other".
        data_licence: of the training images, as the scenario states it.
        usage: Python code that loads it.
    """
    source = result["model"]
    stated = licence if licence != UNKNOWN else "see the publisher of the pretrained weights"
    facts = [
        ("pretrained model", f"`{model}`, weights `{source['weights_sha256'][:12]}`"),
        ("licence of the weights", f"{stated}; it is that of the pretrained weights"),
        ("method", f"{result['label']}, seed {result['seed']}"),
        ("data", f"{stream_name(result['scenario'], result['data'])}, SHA-256"
         f" `{result['data']['sha256'][:12]}`; licence: {data_licence or 'not stated'}"),
        ("prompts", _shortened([f"`{t}`" for t in _templates(result)])),
        ("parameters", f"{source['parameters']:,}, of which {source['trainable_parameters']:,}"
         " were trained"),
        ("made with", f"cl_clipfit {result['environment']['cl_clipfit']}"),
    ]  # fmt: skip
    return "\n".join(
        [
            *_header(licence),
            f"# {title}",
            "",
            "A CLIP model that learned its classes task by task.",
            "",
            *_table(("", ""), facts),
            "",
            "## Tasks",
            "",
            *_table(("task", "classes", "training images", "test images"), _tasks(result)),
            "",
            "## Metrics",
            "",
            f"On the {result['scored_on']} of the stream, after its last task.",
            "",
            *_table(("metric", "value"), _metrics(result)),
            "",
            "## Use",
            "",
            "```python",
            usage.strip(),
            "```",
            "",
        ]
    )


def _header(licence: str) -> list[str]:
    lines = [f"license: {licence.lower()}", "library_name: open_clip"]
    lines += ["pipeline_tag: zero-shot-image-classification", "tags:", "- clip"]
    return ["---", *lines, "- continual-learning", "---", ""]


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(_cell(value) for value in line)} |" for line in lines]


def _cell(value: object) -> str:
    return " ".join(str(value).replace("|", "\\|").split())


def _tasks(result: dict[str, Any]) -> list[tuple[object, ...]]:
    trained = result["tasks"][: len(result["accuracy_matrix"]) - 1]
    return [
        (number, _shortened(task["classes"]), task["train_samples"], task["test_samples"])
        for number, task in enumerate(trained, 1)
    ]


def _metrics(result: dict[str, Any]) -> list[tuple[str, str]]:
    values = [(label, result["metrics"].get(name)) for name, label in _METRICS]
    return [(label, "-" if value is None else f"{value:.1f}") for label, value in values]


def _templates(result: dict[str, Any]) -> list[str]:
    every = [[t] if isinstance(t, str) else t for t in result["templates"]]
    return list(dict.fromkeys(template for group in every for template in group))


def _shortened(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
