"""How long a fresh process takes to answer: imports and the light commands, and that none of them imports torch.

Every command runs in processes of its own, all of them in turns, with the byte code written beforehand. Figures are
the wall time of the whole process but for `import` rows, which a process measures itself.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from measuring import Load, Report, Row, Target, arguments_of, median_interval, timed

COMMANDS = {"polyadapt --help": (["--help"], 0.4), "polyadapt methods": (["methods"], 0.6)}
IMPORTS = {"polyadapt": 0.3, "polyadapt_runtime": None, "onnxruntime": None}
WITH_ENGINE = "polyadapt_runtime and onnxruntime"
PROBE = """
import sys, time
began, before = time.perf_counter(), time.process_time()
{body}
print({{"wall": time.perf_counter() - began, "cpu": time.process_time() - before, "torch": "torch" in sys.modules}})
"""


def script() -> str:
    """The installed command beside this Python."""
    return str(Path(sys.executable).with_name("polyadapt"))


def import_seconds(module: str, clock: str) -> float:
    """Seconds of an import in a fresh process.

    Raises:
        RuntimeError: it imports torch.
    """
    body = f"import {module}" if module != WITH_ENGINE else "import onnxruntime, polyadapt_runtime"
    done = subprocess.run([sys.executable, "-c", PROBE.format(body=body)], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.replace("'", '"').replace("False", "false").replace("True", "true"))
    if found["torch"]:
        raise RuntimeError(f"import {module} imports torch")
    return float(found[clock])


def imports_torch(arguments: list[str]) -> bool:
    """Whether a command imports torch."""
    body = f"import sys\nsys.argv = {['polyadapt', *arguments]!r}\nfrom polyadapt.cli import main\ntry:\n    main()\nexcept SystemExit:\n    pass\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", body], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1] != "False"


def main() -> int:
    arguments = arguments_of("Start-up times.", 20)
    report = Report("startup", "Start-up of fresh processes", is_trial=arguments.is_trial)
    clock = "cpu" if arguments.cpu_time else "wall"
    times: dict[str, list[float]] = {name: [] for name in (*COMMANDS, *IMPORTS, WITH_ENGINE)}
    with Load() as load_of_others:
        for turn in range(arguments.rounds + 1):
            for name, found in times.items():
                if name in COMMANDS:
                    seconds = timed(lambda name=name: subprocess.run([script(), *COMMANDS[name][0]], capture_output=True, check=True))  # type: ignore[misc]
                else:
                    seconds = import_seconds(name, clock)
                if turn:  # the first turn writes byte code and fills the cache of files
                    found.append(seconds)
    report.others = load_of_others.others
    for name, (command, bound) in COMMANDS.items():
        if imports_torch(command):
            raise RuntimeError(f"{name} imports torch")
        report.rows.append(Row(name, *median_interval(times[name]), "s", Target(bound), "torch is not imported"))
    report.rows.append(Row("import polyadapt", *median_interval(times["polyadapt"]), "s", Target(0.3), "torch is not imported"))
    for name in ("polyadapt_runtime", "onnxruntime", WITH_ENGINE):
        report.rows.append(Row(f"import {name}", *median_interval(times[name]), "s"))
    for name in ("polyadapt_runtime", WITH_ENGINE):
        differences = [ours - theirs for ours, theirs in zip(times[name], times["onnxruntime"], strict=True)]
        report.rows.append(Row(f"{name} - onnxruntime", *median_interval(differences), "s", Target(0.03)))
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
