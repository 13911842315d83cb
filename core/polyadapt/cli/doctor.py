"""`polyadapt doctor`: what is installed, what does not fit together, and the command that mends it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click

from polyadapt.cli.context import host_of, print_json, print_table
from polyadapt.host import Host

LIBRARIES = {
    "polyadapt": "",
    "polyadapt-runtime": "",
    "torch": "",
    "accelerate": "",
    "onnx": "",
    "onnxscript": "",
    "onnxruntime": "cpu",
    "onnxruntime-gpu": "gpu",
    "timm": "timm",
    "torchvision": "timm",
    "transformers": "transformers",
    "torchaudio": "torchaudio",
    "diffusers": "diffusers",
    "pillow": "image",
    "soundfile": "audio",
    "av": "codecs",
    "tokenizers": "text",
    "gguf": "text",
    "scikit-learn": "data",
    "mlxtend": "data",
}
"""Distributions with the extra that brings them; empty for what polyadapt always needs."""

ENGINES = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'polyadapt[{extra}]'"

_TORCH_PROBE = """
import json
import torch
result = {"cuda_build": torch.version.cuda or "", "available": torch.cuda.is_available(), "device": "", "error": ""}
if result["available"]:
    try:
        ones = torch.ones(4, device="cuda")
        assert float((ones + ones).sum()) == 8.0
        result["device"] = torch.cuda.get_device_name()
    except Exception as error:
        result["error"] = f"{type(error).__name__}: {error}"
print("\\n" + json.dumps(result))
"""

_ENGINE_PROBE = """
import json
import onnx
import onnxruntime
from onnx import TensorProto, helper
x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "probe", [x], [y])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
offered = onnxruntime.get_available_providers()
used = onnxruntime.InferenceSession(model.SerializeToString(), providers=offered).get_providers()
print("\\n" + json.dumps({"offered": offered, "used": used}))
"""


@dataclass(frozen=True)
class Check:
    """One finding. `state` is `ok`, `warning` or `failed`; `remedy` is empty when all is well."""

    name: str
    state: str
    found: str
    remedy: str = ""


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Check this installation. Ends with status 1 when something is broken."""
    versions = installed()
    checks = [*engines(versions), *torch_siblings(versions), *imports(versions), *_devices(versions), *plugin_checks(host_of(ctx)), _cache()]
    if as_json:
        print_json({"python": platform.python_version(), "versions": versions, "checks": [asdict(check) for check in checks]})
    else:
        click.echo(f"Python {platform.python_version()} on {platform.system()} {platform.machine()}\n")
        print_table(("library", "version", "extra"), ([name, versions[name] or "not installed", LIBRARIES[name]] for name in LIBRARIES))
        click.echo()
        print_table(("check", "state", "found", "what to do"), ([check.name, check.state, check.found, check.remedy] for check in checks))
    if any(check.state == "failed" for check in checks):
        ctx.exit(1)


def installed() -> dict[str, str]:
    """Version of each library by its distribution; empty when it is not installed. Nothing is imported."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = ""
    return versions


def engines(versions: Mapping[str, str]) -> list[Check]:
    """Exactly one onnxruntime: both packages write the same folder, and the one installed last breaks the other."""
    cpu, gpu = versions["onnxruntime"], versions["onnxruntime-gpu"]
    if cpu and gpu:
        remedy = f"{ENGINES.format(extra='gpu')}   (or polyadapt[cpu])"
        return [Check("onnxruntime", "failed", f"onnxruntime {cpu} and onnxruntime-gpu {gpu} overwrite each other", remedy)]
    if not cpu and not gpu:
        return [Check("onnxruntime", "failed", "none is installed: bundles cannot be checked or run", "pip install 'polyadapt[cpu]'   or   pip install 'polyadapt[gpu]'")]
    return [Check("onnxruntime", "ok", f"onnxruntime-gpu {gpu}" if gpu else f"onnxruntime {cpu}")]


def torch_siblings(versions: Mapping[str, str]) -> list[Check]:
    """Torchvision and torchaudio must be of torch's own release, and of the same build (+cpu, +cu…)."""
    torch = versions["torch"]
    if not torch:
        return [Check("torch", "failed", "not installed", "pip install torch")]
    release, _, build = torch.partition("+")
    major, minor = (int(part) for part in release.split(".")[:2])
    expected = {"torchvision": f"0.{minor + 15}", "torchaudio": f"{major}.{minor}"}
    checks = []
    for name, wanted in expected.items():
        if not versions[name]:
            continue
        found_release, _, found_build = versions[name].partition("+")
        if ".".join(found_release.split(".")[:2]) != wanted:
            checks.append(Check(name, "failed", f"{versions[name]} beside torch {torch}", f"pip install '{name}=={wanted}.*'"))
        elif found_build != build:
            remedy = f"install {name} from the same index as torch, so that both are {'+' + build if build else 'of the default build'}"
            checks.append(Check(name, "warning", f"{versions[name]} beside torch {torch}: its compiled half may stay unloaded", remedy))
        else:
            checks.append(Check(name, "ok", f"{versions[name]} fits torch {torch}"))
    return checks


def plugin_checks(host: Host) -> list[Check]:
    """Plugins that did not load, and ids that two of them claim."""
    plugins = host.plugins()
    failed = [Check(f"plugin {plugin.name}", "failed", plugin.error, f"update or uninstall {plugin.distribution}") for plugin in plugins if plugin.state == "failed"]
    clashes = [Check("clash", "failed", line, "uninstall one of them") for line in host.registry.clashes()]
    loaded = ", ".join(plugin.name for plugin in plugins if plugin.state == "ok")
    return [Check("plugins", "ok", loaded or "none"), *failed, *clashes]


def imports(versions: Mapping[str, str]) -> list[Check]:
    """Import torchvision and torchaudio in processes of their own: beside a CPU-only torch their published wheels break."""
    checks = []
    for name in ("torchvision", "torchaudio"):
        if versions[name] and versions["torch"]:
            done = _python(f"import {name}; import {name}.{'ops' if name == 'torchvision' else 'functional'}; print('{{}}')")
            if isinstance(done, str):
                remedy = f"polyadapt works around it; to be rid of it, install torch and {name} from one index, both for CUDA or both for CPU"
                checks.append(Check(f"import {name}", "warning", done, remedy))
    return checks


def _devices(versions: Mapping[str, str]) -> list[Check]:
    """Whether CUDA computes, in torch and in onnxruntime: asking `is_available` is not enough."""
    checks = []
    if versions["torch"]:
        probe = _python(_TORCH_PROBE)
        checks.append(_torch_device(probe))
    if bool(versions["onnxruntime"]) != bool(versions["onnxruntime-gpu"]) and versions["onnx"]:
        engine = _python(_ENGINE_PROBE)
        if isinstance(engine, str):
            checks.append(Check("onnxruntime runs", "failed", engine, ENGINES.format(extra="gpu" if versions["onnxruntime-gpu"] else "cpu")))
        elif versions["onnxruntime-gpu"] and "CUDAExecutionProvider" not in engine["used"]:
            remedy = "install the CUDA and cuDNN libraries that this onnxruntime-gpu was built for"
            checks.append(Check("onnxruntime CUDA", "warning", f"it runs on {', '.join(engine['used'])}", remedy))
        else:
            checks.append(Check("onnxruntime runs", "ok", ", ".join(engine["used"])))
    return checks


def _torch_device(probe: dict[str, Any] | str) -> Check:
    if isinstance(probe, str):
        return Check("torch", "failed", probe, "pip install --force-reinstall torch")
    if probe["error"]:
        return Check("torch CUDA", "failed", probe["error"], "the driver is older than this torch needs, or the device is taken: update the driver, or set CUDA_VISIBLE_DEVICES=")
    if probe["device"]:
        return Check("torch CUDA", "ok", f"computes on {probe['device']} (CUDA {probe['cuda_build']})")
    has_driver = Path("/proc/driver/nvidia/version").exists()
    if has_driver and not probe["cuda_build"]:
        return Check("torch CUDA", "warning", "an NVIDIA driver, and a torch without CUDA", "install a CUDA build of torch, torchvision and torchaudio")
    if has_driver and os.environ.get("CUDA_VISIBLE_DEVICES") != "":
        return Check("torch CUDA", "warning", "an NVIDIA driver, and no usable device", "update the driver, or look at CUDA_VISIBLE_DEVICES")
    return Check("torch CUDA", "ok", "no GPU is used; everything runs on the CPU")


def _cache() -> Check:
    from polyadapt.sources.fetch import cache_directory

    directory = cache_directory()
    size_bytes = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file()) if directory.is_dir() else 0
    above = next(parent for parent in (directory, *directory.parents) if parent.exists())
    if not os.access(above, os.W_OK):
        return Check("cache", "warning", f"{directory} cannot be written", "set POLYADAPT_CACHE to a folder of yours")
    return Check("cache", "ok", f"{directory} ({size_bytes / 1e6:.0f} MB; remove it to clean up, POLYADAPT_CACHE moves it)")


def _python(code: str) -> dict[str, Any] | str:
    """Run code that ends by printing a line of JSON; what it printed, or the last line of its complaint."""
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=180, check=False)
    except subprocess.TimeoutExpired:
        return "did not end within 180 s"
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return lines[-1] if lines else f"ended with status {done.returncode}"
    result: dict[str, Any] = json.loads(done.stdout.rstrip().rpartition("\n")[2])
    return result
