"""Downloads: every way in which a mirror fails is named, the next one is tried, no half file stays."""

from __future__ import annotations

import gzip
import hashlib
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from test_sources import idx

from nas_mnist.core.errors import InputError
from nas_mnist.data import dataset
from nas_mnist.data.dataset import load
from nas_mnist.data.download import DownloadError, Limits, download
from nas_mnist.data.torchvision_sets import TORCHVISION, download_torchvision

CONTENT = b"data" * 5_000
MD5 = hashlib.md5(CONTENT).hexdigest()
QUICK = Limits(silence=0.2, patience=0.4, speed=1e6)
FILES = {"good": CONTENT, "html": b"\n<!DOCTYPE html><p>sign in", "wrong": CONTENT[:-1] + b"!"}


class Mirror(BaseHTTPRequestHandler):
    """Fails in the way that the first part of a path names."""

    over = threading.Event()

    def do_GET(self) -> None:
        name = self.path.split("/")[1]
        if name == "silent":
            self.over.wait(20)
        elif name in FILES:
            self._begin(len(FILES[name]))
            self.wfile.write(FILES[name])
        elif name == "short":
            self._begin(len(CONTENT))
            self.wfile.write(CONTENT[:100])
        elif name in ("drip", "drip-headers"):
            if name == "drip":
                self._begin(len(CONTENT))
            while not self.over.wait(0.02):
                self.wfile.write(b"x")
        else:
            self.send_error(503)

    def _begin(self, size: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server on this machine."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    Mirror.over.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Mirror)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    Mirror.over.set()
    server.shutdown()
    server.server_close()


FAILURES = {
    "503": "HTTP 503 Service Unavailable",
    "html": "an HTML page instead of the file",
    "wrong": f"wrong checksum (MD5 {hashlib.md5(FILES['wrong']).hexdigest()}, expected {MD5}, 20,000 bytes)",
    "short": "ended after 100 of 20,000 bytes",
    "silent": "no answer for 0.2 seconds",
    "drip": "too slow",
    "drip-headers": "too slow",
}


@pytest.mark.parametrize("how", FAILURES)
def test_a_mirror_that_fails_is_named_with_its_reason_and_the_next_one_is_tried(
    how: str, mirror: str, tmp_path: Path
) -> None:
    target = tmp_path / "file"
    with pytest.raises(DownloadError) as failed:
        download([f"{mirror}/{how}"], target, MD5, limits=QUICK)
    host = mirror.removeprefix("http://")
    assert str(failed.value).startswith(f"{host}: {FAILURES[how]}")
    assert list(tmp_path.iterdir()) == []
    assert download([f"{mirror}/{how}", f"{mirror}/good"], target, MD5, limits=QUICK) == f"{mirror}/good"
    assert target.read_bytes() == CONTENT


def test_all_mirrors_reasons_are_told_also_of_one_that_cannot_be_reached(mirror: str, tmp_path: Path) -> None:
    urls = [f"{mirror}/503", "http://127.0.0.1:9/file", f"{mirror}/html"]
    with pytest.raises(DownloadError) as failed:
        download(urls, tmp_path / "file", MD5, limits=QUICK)
    assert "HTTP 503" in str(failed.value)
    assert "127.0.0.1:9: Connection refused" in str(failed.value)
    assert "\n" not in str(failed.value)


def test_what_has_come_is_shown_while_it_comes(mirror: str, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    with pytest.raises(DownloadError):
        slow = Limits(silence=5, patience=0.3, speed=1e6)
        download([f"{mirror}/drip"], tmp_path / "f", MD5, lambda *now: seen.append(now), slow)
    assert seen[-1][0] > 0
    assert seen[-1][1] == len(CONTENT)


def test_an_interrupt_leaves_no_half_file(mirror: str, tmp_path: Path) -> None:
    def interrupt(done: int, _: int | None) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download([f"{mirror}/drip"], tmp_path / "f", MD5, interrupt)
    time.sleep(0.05)  # the thread has received more
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def fashion(monkeypatch: pytest.MonkeyPatch, mirror: str, tmp_path: Path) -> Path:
    """Fashion-MNIST of 40 images on two mirrors, the first of which answers nothing; returns the cache."""
    from torchvision.datasets import FashionMNIST

    images, labels = np.arange(40 * 64, dtype=np.uint8).reshape(40, 8, 8), np.arange(40, dtype=np.uint8) % 10
    resources = []
    for name, _ in FashionMNIST.resources:
        FILES[name] = gzip.compress(idx(images if "images" in name else labels))
        resources.append((name, hashlib.md5(FILES[name]).hexdigest()))
    monkeypatch.setattr(FashionMNIST, "resources", resources)
    monkeypatch.setattr(FashionMNIST, "mirrors", [f"{mirror}/silent/", f"{mirror}/"])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(dataset, "download_torchvision", partial(download_torchvision, limits=QUICK))
    return tmp_path / "nas_mnist"


def test_a_set_of_torchvision_comes_from_the_mirror_that_answers(
    fashion: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = load("fashion-mnist")
    assert (len(data.train), len(data.read_test()), data.class_names[0]) == (40, 40, "T-shirt")
    out, err = capsys.readouterr()
    assert "Downloading fashion-mnist: train-images-idx3-ubyte.gz" in out
    assert err == ""  # the bar is for terminals
    raw = sorted(file.name for file in fashion.rglob("*") if file.is_file())
    assert raw == [
        *("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
        *("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    ]
    (fashion / "FashionMNIST" / "raw" / raw[0]).write_bytes(b"half")  # by an earlier version
    assert len(load("fashion-mnist", quiet=True).read_test()) == 40
    assert capsys.readouterr() == ("", "")


def test_a_set_that_cannot_be_downloaded_leaves_nothing_and_says_why(
    fashion: Path, monkeypatch: pytest.MonkeyPatch, mirror: str
) -> None:
    from torchvision.datasets import FashionMNIST

    monkeypatch.setattr(FashionMNIST, "mirrors", [f"{mirror}/503/", f"{mirror}/html/"])
    with pytest.raises(InputError) as refused:
        load("fashion-mnist")
    host = mirror.removeprefix("http://")
    text = str(refused.value)
    assert f"{host}: HTTP 503 Service Unavailable; {host}: an HTML page instead of the file (" in text
    assert "\n" not in text
    assert not fashion.exists()
    with pytest.raises(DownloadError, match=r"Not a directory|File exists"):
        fashion.write_bytes(b"")
        download_torchvision("kmnist", TORCHVISION["kmnist"], fashion)
