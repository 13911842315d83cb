"""The process in which damaged files are opened: memory and time limited, every file that is opened watched.

Reads lines {"index", "source", "kind", "limit_bytes"} and answers each with {"verdict", "detail", "done"}. It imports what
a user's process has: the runtime, numpy and onnxruntime. When it dies, the trace in its log says in whose code.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import random
import resource
import sys
import sysconfig
from pathlib import Path
from typing import Any

import mutations
import numpy as np

from polyadapt_runtime import Bundle, BundleError
from polyadapt_runtime.selftest import CASES, TENSORS
from polyadapt_runtime.session import engine
from polyadapt_runtime.tensors import read_safetensors

TIME_LIMIT_S = 10
SLACK_BYTES = 128 << 20  # what a session of onnxruntime maps beside a bundle's own bytes, for however small a graph
IN_ACCESS_OR_OPEN, IN_NONBLOCK = 0x1 | 0x20, 0o4000
OWN = tuple(os.path.realpath(path) for path in {sys.prefix, sys.base_prefix, *sysconfig.get_paths().values(), "/proc/self", "/sys", "/dev/urandom", *filter(None, sys.path)})


class Canary:
    """A file outside that nobody may open, by whatever path and from whatever language: the kernel tells."""

    def __init__(self, path: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._handle = libc.inotify_init1(IN_NONBLOCK)
        if self._handle < 0 or libc.inotify_add_watch(self._handle, os.fsencode(path), IN_ACCESS_OR_OPEN) < 0:
            raise OSError(ctypes.get_errno(), "cannot watch the canary")

    def was_touched(self) -> bool:
        """Whether it was opened or read since the last question."""
        try:
            return bool(os.read(self._handle, 65536))
        except BlockingIOError:
            return False


class Doorkeeper:
    """An audit hook that notes files opened by Python outside the damaged folder and the installation."""

    def __init__(self) -> None:
        self.root: str | None = None
        self.outside: list[str] = []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and self.root is not None and isinstance(arguments[0], str | bytes):
            path = os.path.realpath(os.fsdecode(arguments[0]))
            if not path.startswith((self.root, *OWN)):
                self.outside.append(path)


def judge(order: dict[str, Any], work: Path, canary: Path, seed: int, door: Doorkeeper, watch: Canary) -> dict[str, str]:
    """Damage a copy, open it, and say what came of it."""
    generator = random.Random(f"{seed}:{order['index']}")
    source, reseals = Path(order["source"]), generator.random() < 0.6
    root = mutations.copy(source, work / "case")
    done = mutations.mutate(root, generator, canary, reseals)
    watch.was_touched()
    door.root, door.outside = str(root), []
    faulthandler.dump_traceback_later(TIME_LIMIT_S, exit=True, file=sys.stderr)
    declared = sum(path.stat().st_size for folder in {root, Path(order.get("bundle", root))} for path in folder.rglob("*") if path.is_file())
    limit = _mapped_bytes() + 2 * declared + SLACK_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    try:
        verdict, detail = opened(root) if order["kind"] == "bundle" else loaded(root, Path(order["bundle"]))
    except BundleError as error:
        verdict, detail = "refused", f"{type(error).__name__}: {error}"
    except BaseException as error:
        verdict, detail = "finding", f"{type(error).__name__}: {error}"
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        faulthandler.cancel_dump_traceback_later()
        door.root = None
    if not reseals and verdict != "refused" and _differs(root, source, order["kind"]):
        verdict, detail = "finding", "altered files were not noticed although their digests were left as they were"
    if watch.was_touched():
        verdict, detail = "finding", "a file outside was opened"
    if outside := [path for path in door.outside if not path.startswith(str(order.get("bundle", root)))]:
        verdict, detail = "finding", f"opened {outside[0]}"
    return {"verdict": verdict, "detail": detail[:400], "done": done[:400]}


def opened(root: Path) -> tuple[str, str]:
    """Open a bundle and do everything with it that reads its files."""
    bundle = Bundle(root, device="cpu", threads=1)
    bundle.info()
    for name in bundle.artifacts():
        folder = root / "artifacts" / name
        if (folder / "slots.json").is_file():
            bundle.load_artifact(folder, f"{name} again")
    return ("passed", "") if bundle.selftest().ok else ("differs", "the self-test says so")


def loaded(folder: Path, home: Path) -> tuple[str, str]:
    """Take an artifact's folder from outside into a sound bundle, and call it."""
    bundle = Bundle(home, device="cpu", threads=1, verify=False)
    bundle.load_artifact(folder, "guest")
    tensors, _ = read_safetensors(home / TENSORS)
    case = json.loads((home / CASES).read_text())["cases"][0]["name"]
    feeds = {name.removeprefix(f"{case}/in/"): value for name, value in tensors.items() if name.startswith(f"{case}/in/")}
    found = bundle.run(feeds, "guest")
    return "passed", str({name: np.shape(value) for name, value in found.items()})


def _differs(root: Path, source: Path, kind: str) -> bool:
    """Whether a file that a digest covers is not what it was."""
    covered = [path for path in source.rglob("*") if path.is_file() and path.name not in ("manifest.json", "artifact.json")]
    return any(not (copy := root / path.relative_to(source)).is_file() or copy.is_symlink() or copy.read_bytes() != path.read_bytes() for path in covered)


def _mapped_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    work, canary, log, seed = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # libraries print what they like
    with open(log, "w") as trace:
        faulthandler.enable(trace)
        sys.stderr = trace
        engine()
        door, watch = Doorkeeper(), Canary(canary)
        for line in sys.stdin:
            print(json.dumps(judge(json.loads(line), work, canary, seed, door, watch)), file=answers, flush=True)


if __name__ == "__main__":
    main()
