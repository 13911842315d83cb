"""What this package raises on purpose. A message says what was asked, what was found and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BundleError(Exception):
    """Base of all errors of this package."""

    exit_code = 1


class IntegrityError(BundleError):
    """A file is missing, altered, unlisted, or not of the recorded size."""


class UnsafePathError(IntegrityError):
    """A path leaves the bundle, or a file is a link or no plain file."""


class ManifestError(BundleError):
    """A manifest, or a file beside it, does not follow the format."""


class TensorFileError(BundleError):
    """A safetensors file whose header and bytes do not fit together."""


class GraphError(BundleError):
    """onnxruntime refuses the graph, or the graph is not what the manifest describes."""


class ArtifactError(BundleError):
    """An artifact that is not there, does not fit this bundle, or cannot do what was asked."""


class InputError(BundleError):
    """The caller's input cannot be used as it stands."""


class DeviceError(BundleError):
    """The device that was asked for is not there."""


class MissingLibraryError(BundleError):
    """A library that this use needs is not installed."""

    def __init__(self, library: str, extra: str, needed_for: str) -> None:
        super().__init__(f"{needed_for} needs {library}, which is not installed; run: pip install 'polyadapt-runtime[{extra}]'")


def nearest(asked: str, known: Iterable[str]) -> str:
    """`"; did you mean 'a'?"`, or the list of known names when none is close."""
    names = sorted(known)
    close = difflib.get_close_matches(asked, names, n=3, cutoff=0.6)
    if close:
        return "; did you mean " + " or ".join(map(repr, close)) + "?"
    if not names:
        return "; there is none"
    return f"; known: {', '.join(names[:20])}{', …' if len(names) > 20 else ''}"
