"""`python -m polyadapt_runtime BUNDLE [INPUT…]`: look at a bundle, prove it, ask it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from polyadapt_runtime.bundle import Bundle
from polyadapt_runtime.errors import BundleError, InputError


class Parser(argparse.ArgumentParser):
    """Wrong arguments are wrong input like any other."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; --help lists the arguments")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of the command line.

    Returns:
        0 done, 1 wrong input or a self-test that does not pass.
    """
    parser = Parser(prog="polyadapt_runtime", description="Run an exported bundle; without inputs, show what it is.")
    parser.add_argument("bundle", help="the bundle's folder")
    parser.add_argument("inputs", nargs="*", metavar="INPUT", help="a file, or text for models that read text")
    parser.add_argument("--artifact", help="name of an artifact in the bundle, or the folder of one")
    parser.add_argument("--scale", type=float, default=1.0, help="how much of the artifact's effect (default 1)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--variant", default="float32", help="float32, or a variant of the bundle: float16 or int8")
    parser.add_argument("--beams", type=int, default=1, help="texts that the search of a ctc model follows (default 1: the best path)")
    parser.add_argument("--threads", type=int, help="threads of one call")
    parser.add_argument("--selftest", action="store_true", help="run the recorded parity cases again")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of lines")
    try:
        options = parser.parse_args(arguments)
        answer, good = _answer(options)
    except BundleError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    sys.stdout.write(json.dumps(answer, indent=2, ensure_ascii=False) + "\n" if options.json else "".join(f"{line}\n" for line in _lines(answer)))
    return 0 if good else 1


def _answer(options: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    bundle = Bundle(options.bundle, device=options.device, threads=options.threads, variant=options.variant)
    if options.selftest:
        report = bundle.selftest()
        return report.to_dict(), report.ok
    if not options.inputs:
        return bundle.info(), True
    artifact = options.artifact
    if artifact is not None and artifact not in bundle.artifacts() and Path(artifact).is_dir():
        artifact = bundle.load_artifact(artifact)
    return {item: _plain(bundle(item, artifact, options.scale, beams=options.beams)) for item in options.inputs}, True


def _plain(answer: Any) -> Any:
    if is_dataclass(answer) and not isinstance(answer, type):
        return asdict(answer)
    if isinstance(answer, np.ndarray | np.generic):
        return answer.tolist()
    return {key: _plain(value) for key, value in answer.items()} if isinstance(answer, dict) else answer


def _lines(answer: dict[str, Any]) -> list[str]:
    """A table as lines `key: value`; lists of tables one entry a line."""
    lines = []
    for key, value in answer.items():
        if isinstance(value, list | tuple) and value and isinstance(value[0], dict):
            lines += [f"{key}:", *("  " + "  ".join(f"{name}={item}" for name, item in entry.items()) for entry in value)]
        elif isinstance(value, dict) and "label" in value and "score" in value:
            lines.append(f"{key}: {value['label']} ({value['score']:.3f})")
        else:
            lines.append(f"{key}: {value}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
