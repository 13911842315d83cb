"""Damage real bundles and artifacts by the thousand, and see what the runtime makes of them: python tools/fuzz.py.

Every damaged folder must either be refused by an error of the runtime's own, or open and run. Nothing else: no other
exception, no crash, no hang, no file opened outside, no memory beyond twice the declared sizes. Part of the folders get
their digests written anew, as somebody does who wants to deceive; then the graph reaches onnxruntime, whose own crashes
are counted apart: for them the answer is a signature, not a check.

Each case is made from `--seed` and its number alone; `--only NUMBER` repeats one.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TOOLS = Path(__file__).parent
ANSWER_LIMIT_S = 30
MODELS = {
    "policy": ("polyadapt:tiny-mlp-policy", ("lora", "bottleneck")),
    "picture": ("polyadapt:tiny-vit", ("lora", "prompt")),
    "text": ("polyadapt:tiny-bert", ("bottleneck", "prefix")),
}


@dataclass
class Worker:
    """A sandbox that is started anew after each crash."""

    folder: Path
    seed: int
    process: subprocess.Popen[str] | None = None

    def ask(self, order: dict[str, Any]) -> dict[str, str]:
        """The sandbox's answer; when it dies, in whose code."""
        if self.process is None:
            arguments = [self.folder / "work", self.folder / "canary" / "secret.bin", self.folder / "trace.log", str(self.seed)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            self.process = subprocess.Popen(
                [sys.executable, TOOLS / "sandbox.py", *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
            )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        ready, _, _ = select.select([self.process.stdout], [], [], ANSWER_LIMIT_S)
        line = self.process.stdout.readline() if ready else ""
        if line:
            answer: dict[str, str] = json.loads(line)
            return answer
        self.stop()
        trace = (self.folder / "trace.log").read_text(errors="replace")
        frame = re.search(r'File "([^"]+)", line \d+ in \w+', trace)
        where = frame[1] if frame else "nobody knows where"
        kind = "hung" if "Timeout" in trace or not ready else "crashed"
        inside = "/onnxruntime/" in where
        return {"verdict": f"onnxruntime {kind}" if inside else "finding", "detail": f"{kind} in {Path(where).name}: {trace[:300]!r}", "done": ""}

    def stop(self) -> None:
        """End the sandbox."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@dataclass
class Tally:
    """What came of the cases so far."""

    verdicts: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)

    def add(self, index: int, answer: dict[str, str]) -> None:
        """Count one answer; what is no plain pass or refusal is printed with its number."""
        self.verdicts[answer["verdict"]] += 1
        if answer["verdict"] == "refused":
            self.errors[answer["detail"].partition(":")[0]] += 1
        if answer["verdict"] not in ("passed", "refused", "differs"):
            print(f"case {index}: {answer['verdict']}: {answer['detail']} [{answer['done']}]", flush=True)


def subjects(folder: Path) -> list[dict[str, Any]]:
    """Real bundles, exported here and now, and real folders of artifacts."""
    from polyadapt import api
    from polyadapt.host import Host
    from polyadapt.methods.base import load_method
    from polyadapt.testing.exporting import adapted_artifact

    cards = {claim.card.id: claim.card for claim in Host().registry.methods.claims()}
    found: list[dict[str, Any]] = []
    for name, (reference, methods) in MODELS.items():
        model = api.load(reference)
        artifacts = {method: adapted_artifact(load_method(cards[method]), model) for method in methods}
        bundle = api.export(model, artifacts, folder / f"{name}.bundle").directory
        found.append({"kind": "bundle", "source": str(bundle), "limit_bytes": _size(bundle)})
        for method, artifact in artifacts.items():
            saved = artifact.save(folder / f"{name}-{method}")
            found.append({"kind": "artifact", "source": str(saved), "bundle": str(bundle), "limit_bytes": _size(bundle) + _size(saved)})
    return found


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def run(arguments: argparse.Namespace, folder: Path) -> Tally:
    """Judge cases until there are enough or time is up."""
    for name in ("work", "canary"):
        (folder / name).mkdir()
    (folder / "canary" / "secret.bin").write_bytes(b"nobody may read this" * 100)
    orders, tally, worker, began = subjects(folder), Tally(), Worker(folder, arguments.seed), time.monotonic()
    indices = range(arguments.count) if arguments.only is None else [arguments.only]
    try:
        for index in indices:
            if time.monotonic() - began > arguments.seconds:
                print(f"stopped after {arguments.seconds} s")
                break
            answer = worker.ask({**orders[index % len(orders)], "index": index})
            tally.add(index, answer)
            if arguments.only is not None:
                print(json.dumps(answer, indent=2))
            if index and index % 1000 == 0:
                print(f"{index} cases, {time.monotonic() - began:.0f} s: {dict(tally.verdicts)}", flush=True)
    finally:
        worker.stop()
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description="Damage bundles and artifacts, and see what the runtime makes of them.")
    parser.add_argument("--count", type=int, default=20_000, help="damaged folders (default 20000)")
    parser.add_argument("--seconds", type=float, default=3600.0, help="stop after so long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="repeat one case by its number")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="polyadapt-fuzz-") as folder:
        tally = run(arguments, Path(folder))
    total, findings = sum(tally.verdicts.values()), tally.verdicts["finding"]
    print(f"{total} cases with seed {arguments.seed}: {dict(tally.verdicts.most_common())}")
    print(f"refused by: {dict(tally.errors.most_common())}")
    print("no finding" if not findings else f"{findings} FINDINGS")
    return int(findings > 0)


if __name__ == "__main__":
    sys.exit(main())
