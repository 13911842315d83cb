"""The page under examples/web in a real browser: recorded cases, adapters swapped on the page, pictures of the user's own."""

from __future__ import annotations

import base64
import contextlib
import functools
import http.server
import json
import os
import select
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from PIL import Image

import polyadapt as pa
from polyadapt.host import Host
from polyadapt.methods.base import load_method
from polyadapt.testing.exporting import adapted_artifact
from polyadapt_runtime import Bundle

WEB = Path(__file__).resolve().parents[2] / "examples" / "web"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
    "--window-size=1000,1500",
)
TIMEOUT_S = 60.0


class Page:
    """A browser with one page, over the DevTools protocol: JSON messages that end with a zero byte, through two pipes."""

    def __init__(self, profile: Path) -> None:
        assert BROWSER is not None
        to_browser, self._requests = os.pipe()
        self._answers, from_browser = os.pipe()
        # The protocol wants file descriptors 3 and 4.
        command = ["bash", "-c", f'exec "$@" 3<&{to_browser} 4>&{from_browser}', "browser", BROWSER, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(command, pass_fds=(to_browser, from_browser), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(to_browser)
        os.close(from_browser)
        self._count, self._rest, self._session = 0, b"", ""
        page = next(target for target in self.send("Target.getTargets")["targetInfos"] if target["type"] == "page")
        self._session = self.send("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to one command."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters, **({"sessionId": self._session} if self._session else {})}
        os.write(self._requests, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._answers], [], [], TIMEOUT_S)
            read = os.read(self._answers, 1 << 16) if ready else b""
            assert read, "the browser does not answer"
            self._rest += read
        message, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def value(self, expression: str) -> Any:
        """What a JavaScript expression gives on the page, promises awaited."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, expression: str) -> None:
        """Until an expression is true."""
        end = time.monotonic() + TIMEOUT_S
        while not self.value(expression):
            assert time.monotonic() < end, f"waited in vain for {expression}; the page says: {self.value('document.body.innerText')}"
            time.sleep(0.05)

    def open(self, url: str) -> None:
        self.send("Page.navigate", url=url)
        self.wait("['done', 'failed'].includes(document.body?.dataset.state)")

    def table(self, name: str) -> list[list[str]]:
        """The cells of a table's body."""
        rows: list[list[str]] = self.value(f"[...document.querySelectorAll('#{name} tbody tr')].map((row) => [...row.cells].map((cell) => cell.innerText))")
        return rows

    def choose_file(self, path: Path) -> None:
        """Give the page a file of the user's."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
        self.send("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", captureBeyondViewport=True)["data"]))

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=TIMEOUT_S)
        os.close(self._requests)
        os.close(self._answers)


class Quiet(http.server.SimpleHTTPRequestHandler):
    """The example's folder, and below /bundles/ the folder of the bundles."""

    def __init__(self, *arguments: Any, bundles: Path, **rest: Any) -> None:
        self._bundles = bundles
        super().__init__(*arguments, **rest)

    def translate_path(self, path: str) -> str:
        if path.startswith("/bundles/"):
            return str(self._bundles / path.removeprefix("/bundles/").partition("?")[0])
        return super().translate_path(path)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing."""


@contextlib.contextmanager
def served(bundles: Path) -> Iterator[str]:
    handler = functools.partial(Quiet, bundles=bundles, directory=str(WEB))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    if BROWSER is None:
        pytest.skip("there is no browser; run: apt-get install chromium")
    if not (WEB / "node_modules" / "onnxruntime-web").is_dir():
        pytest.skip("onnxruntime-web is not installed; run: make web")
    opened = Page(tmp_path / "profile")
    try:
        yield opened
    finally:
        opened.close()


def check_page(page: Page, folder: Path, shot: Path) -> None:
    """Every recorded case agrees; every adapter answers as in Python, and everything repeats after swapping."""
    bundle = Bundle(folder, device="cpu")
    names = list(bundle.artifacts())
    with served(folder.parent) as url:
        page.open(f"{url}?bundle=/bundles/{folder.name}/")
        assert page.value("document.body.dataset.state") == "done", page.value("document.body.innerText")
        cases = page.table("cases")
        assert [(row[0], row[2]) for row in cases] == [(case.case, case.output) for case in bundle.selftest().cases]
        assert all(row[5] == "agrees" and float(row[3]) <= float(row[4]) for row in cases)
        check_swap(page, names)
        page.screenshot(shot)
        check_user_picture(page, bundle, names, shot.with_name("picture.png"))


def check_swap(page: Page, names: list[str]) -> None:
    rows = page.table("swap")
    assert [row[0] for row in rows] == ["base", *names, *reversed(names), "base"]
    half = len(names) + 1
    assert [row[3] for row in rows] == [""] * half + ["bit for bit"] * half
    assert len({tuple(row[1:3]) for row in rows[:half]}) == half, "the adapters answer alike"


def check_user_picture(page: Page, bundle: Bundle, names: list[str], picture: Path) -> None:
    """A PNG that the user picks, with each button pressed in turn, gives the class and score of the same graphs in Python."""
    pixels = np.random.default_rng(3).integers(64, 193, (70, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(picture)
    front = onnxruntime.InferenceSession(bundle.path / bundle.manifest.graphs["preprocess"].file, providers=["CPUExecutionProvider"])
    feeds = {bundle.manifest.preprocess["input"]: front.run(None, {"picture": pixels})[0]}
    page.choose_file(picture)
    page.wait("document.querySelector('#picture').width === 90")
    for name in (None, *names, None):
        page.value(f"document.querySelector('#adapters button[data-artifact=\"{name or ''}\"]').onclick()")
        label, score = page.value("[...document.querySelector('#classes li').children].map((cell) => cell.innerText)")[::2]
        expected = bundle(feeds, artifact=name)[0]
        assert label == expected.label
        assert float(score) == pytest.approx(expected.score, abs=1e-3)  # three digits are shown


def test_a_bundle_on_the_page(page: Page, pictures_bundle: Path, tmp_path: Path) -> None:
    check_page(page, pictures_bundle, tmp_path / "page.png")


def test_the_snippet_of_the_docs(page: Page, program_folder: Path, snippet: Callable[[str], str]) -> None:
    """The page as it stands, with its picture: what Python says, from the base, both adapters, and the base again."""
    (program_folder / "node_modules").symlink_to(WEB / "node_modules")
    (program_folder / "index.html").write_text(snippet("html"), encoding="utf-8")
    bundle = Bundle(program_folder / "pictures.bundle", device="cpu")
    with served(program_folder.parent) as url:
        page.open(f"{url}bundles/program/index.html")
        lines = page.value("document.querySelector('#answers').textContent").splitlines()
    found = [line.split() for line in lines]
    for (shown, label, score), name in zip(found, (None, "birds", "tools", None), strict=True):
        expected = bundle(program_folder / "picture.png", artifact=name)
        assert (shown, label) == (name or "base", expected.label)
        assert float(score) == pytest.approx(expected.score, abs=0.02)  # the two ways of resizing differ by 2 of 255 steps
    assert found[0] == found[3]


def test_first_calls_at_the_same_time(page: Page, program_folder: Path, snippet: Callable[[str], str]) -> None:
    """The very first sessions of a page are asked for at once: onnxruntime-web keeps the weights of a new session in one place."""
    (program_folder / "node_modules").symlink_to(WEB / "node_modules")
    head = snippet("html").partition('<pre id="answers">')[0]
    (program_folder / "index.html").write_text(f'{head}<body data-state="done"></body>', encoding="utf-8")
    both = """(async () => {
        const ort = await import("onnxruntime-web");
        const { Bundle, below } = await import("./polyadapt.js");
        const bundle = await Bundle.open(ort, below("pictures.bundle/"));
        const [rows] = await Promise.all([bundle.selftest(), bundle.picture(new Uint8Array(300), 10, 10)]);
        return rows.filter((row) => row.ok).length;
    })()"""
    with served(program_folder.parent) as url:
        page.open(f"{url}bundles/program/index.html")
        assert page.value(both) == 16


def test_the_page_refuses_an_altered_file(page: Page, pictures_bundle: Path, tmp_path: Path) -> None:
    """One bit of an adapter is turned: the page names the file and shows no verdict."""
    folder = tmp_path / "altered.bundle"
    shutil.copytree(pictures_bundle, folder)
    victim = folder / "artifacts" / "birds" / "slots.safetensors"
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(data)
    with served(tmp_path) as url:
        page.open(f"{url}?bundle=/bundles/altered.bundle")
        assert page.value("document.body.dataset.state") == "failed"
        assert "artifacts/birds/slots.safetensors was altered" in page.value("document.querySelector('#problem').innerText")
        assert page.table("cases") == []


@pytest.mark.slow
@pytest.mark.weights("polyadapt:efficientnet-lite0")
def test_a_pretrained_network_on_the_page(page: Page, tmp_path: Path) -> None:
    """1000 classes of its own, two adapters with ten and with three."""
    model = pa.load("polyadapt:efficientnet-lite0", image_size_px=96)
    methods = Host().registry.methods
    labels = {"lora": tuple("0123456789"), "bitfit": ("owl", "robin", "wren")}
    artifacts = {method: adapted_artifact(load_method(methods.get(method).card), model.with_labels(names)) for method, names in labels.items()}
    pa.export(model, artifacts, tmp_path / "lite0.bundle")
    check_page(page, tmp_path / "lite0.bundle", tmp_path / "page.png")
