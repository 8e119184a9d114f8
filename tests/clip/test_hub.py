"""What the Hugging Face hub answers reaches the user: an error of its own is no missing network."""

from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from cl_clipfit.clip import create_classifier
from cl_clipfit.errors import UserError


class AnsweredError(OSError):
    """An error of the client, which keeps what the server answered."""

    def __init__(self, status: int) -> None:
        super().__init__("for url")
        self.response = SimpleNamespace(status_code=status)


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (503, "(the hub answers 503: try again later)"),
        (500, "(the hub answers 500: try again later)"),
        (429, "(the hub answers 429: try again later)"),
        (404, "(the hub answers 404: it has no such model of open_clip, or keeps it private)"),
        (401, "(the hub answers 401: it has no such model of open_clip, or keeps it private)"),
        (0, "(no network?)"),
    ],
)
def test_what_a_hub_answers_is_said(
    status: int, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        if status in (401, 404):
            raise AnsweredError(status)
        cause = AnsweredError(status) if status else ConnectionError("refused")
        raise LocalEntryNotFoundError("cannot find the requested files in the cache") from cause

    monkeypatch.setattr("open_clip.pretrained.hf_hub_download", fail)
    for name in ("hf-hub:org/model", "ViT-B-32:laion2b_s34b_b79k"):
        with pytest.raises(UserError) as caught:
            create_classifier(name)
        message = str(caught.value)
        assert says in message and "\n" not in message
        assert "local-dir:FOLDER" in message or ":PATH_TO/" in message
