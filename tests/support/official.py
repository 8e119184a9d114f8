"""Small data sets in official formats, and a server that serves files as the official hosts do."""

import http.server
import io
import pickle
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from cl_clipfit.data.formats.cifar import CIFAR100


def cifar_batch(per_class: int, seed: int) -> dict[str, Any]:
    """Return a batch whose images have one brightness a class."""
    labels = [label for _ in range(per_class) for label in range(100)]
    draws = np.random.default_rng(seed)
    noise = draws.integers(0, 50, (len(labels), 3072))
    data = (np.array(labels)[:, None] * 2 + noise).astype(np.uint8)
    names = [f"image_{n}.png" for n in range(len(labels))]
    return {
        "batch_label": "training batch 1 of 1",
        "fine_labels": labels,
        "coarse_labels": [label // 5 for label in labels],
        "data": data,
        "filenames": names,
    }


def cifar_files(train: int = 4, test: int = 1) -> dict[str, bytes]:
    """Return the three files of a small CIFAR-100, with `train` and `test` images per class."""
    names = [name.replace(" ", "_") for name in CIFAR100.names]
    meta = {"fine_label_names": names, "coarse_label_names": [f"group {n}" for n in range(20)]}
    contents = {"train": cifar_batch(train, 0), "test": cifar_batch(test, 1), "meta": meta}
    # the official files were written by Python 2, in protocol 2
    return {name: pickle.dumps(content, protocol=2) for name, content in contents.items()}


def write_archive(file: Path, files: dict[str, bytes], folder: str = "cifar-100-python") -> Path:
    """Write a gzipped archive as the official one."""
    with tarfile.open(file, "w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file


class Server:
    """A local host of one file.

    Attributes:
        url: where the file is.
        ranges: the Range headers received, "" where a request had none.
    """

    def __init__(self, content: bytes, cut: list[int], ranges: bool, status: list[int]) -> None:
        self.ranges: list[str] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = self.headers.get("Range", "")
                outer.ranges.append(asked)
                if status:
                    self.send_error(status.pop(0))
                    return
                start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
                start = start if ranges else 0
                if start >= len(content):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(content)}")
                    self.end_headers()
                    return
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(content) - start))
                self.end_headers()
                end = cut.pop(0) if cut else len(content)
                self.wfile.write(content[start:end])

            def log_message(self, *arguments: Any) -> None:
                """Stay silent."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/cifar-100-python.tar.gz"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """Close the port."""
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def serve(
    content: bytes, cut: tuple[int, ...] = (), ranges: bool = True, status: tuple[int, ...] = ()
) -> Iterator[Server]:
    """Serve bytes; the first answers may break off after `cut` bytes or be errors of `status`."""
    server = Server(content, list(cut), ranges, list(status))
    try:
        yield server
    finally:
        server.stop()
