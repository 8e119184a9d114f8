"""The Hugging Face hub: a client that does not wait for a missing network, and its errors."""

import contextlib
import logging
import os
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from cl_clipfit.errors import UserError


@contextlib.contextmanager
def patient_hub() -> Iterator[None]:
    """Use the hub's cache immediately if there is no network, and silence its logging.

    Telemetry is disabled unless HF_HUB_DISABLE_TELEMETRY=0 is set.

    The hub client retries for a minute before it gives up. A host name that cannot be resolved
    needs no retry; behind a proxy it need not be resolvable, so the client is not changed then.
    """
    from huggingface_hub import constants

    offline, silenced = constants.HF_HUB_OFFLINE, logging.root.manager.disable
    telemetry = constants.HF_HUB_DISABLE_TELEMETRY
    constants.HF_HUB_DISABLE_TELEMETRY = telemetry or "HF_HUB_DISABLE_TELEMETRY" not in os.environ
    host = urllib.parse.urlsplit(constants.ENDPOINT).hostname
    if not urllib.request.getproxies():
        try:
            socket.getaddrinfo(host, None)
        except OSError:
            constants.HF_HUB_OFFLINE = True
    logging.disable(logging.CRITICAL)  # open_clip logs errors that are reported here
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline
        constants.HF_HUB_DISABLE_TELEMETRY = telemetry
        logging.disable(silenced)


def fetch_model(repository: str) -> tuple[Path, Path]:
    """Download the configuration and the weights of a model, and return both files.

    Raises:
        UserError: they are not to be had.
    """
    from open_clip.pretrained import download_pretrained_from_hf

    try:
        with patient_hub():
            config = download_pretrained_from_hf(repository, filename="open_clip_config.json")
            return Path(config), Path(download_pretrained_from_hf(repository))
    except Exception as error:  # of whatever client the hub's library uses
        raise UserError(
            f"cannot get hf-hub:{repository} ({hub_reason(error)}): fetch the files of the Hugging"
            f" Face repository {repository} into a folder, then --model local-dir:FOLDER"
        ) from error


def hub_reason(error: BaseException | None, what: str = "model of open_clip") -> str:
    """Return why a transfer failed: what the server answered, or that nothing did.

    Args:
        error: of the hub's client.
        what: that was looked for.
    """
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403, 404):
            return f"the hub answers {status}: it has no such {what}, or keeps it private"
        if status is not None:
            return f"the hub answers {status}: try again later"
        error = error.__cause__ or error.__context__
    return "no network?"
