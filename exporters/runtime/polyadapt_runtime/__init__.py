"""Run Polyadapt's bundles with numpy and onnxruntime.

>>> b = Bundle("birds.bundle")
>>> b("photo.jpg", artifact="birds").label
"""

from polyadapt_runtime.beam import Beams
from polyadapt_runtime.bundle import Bundle
from polyadapt_runtime.errors import (
    ArtifactError,
    BundleError,
    DeviceError,
    GraphError,
    InputError,
    IntegrityError,
    ManifestError,
    MissingLibraryError,
    TensorFileError,
    UnsafePathError,
)
from polyadapt_runtime.postprocess import Prediction
from polyadapt_runtime.preprocess import Processor
from polyadapt_runtime.sampling import Sampling
from polyadapt_runtime.selftest import CaseResult, SelfTest
from polyadapt_runtime.slots import ArtifactInfo
from polyadapt_runtime.sound import Clip, pcm_sound
from polyadapt_runtime.timestamps import Segment
from polyadapt_runtime.transcribe import text_of, transcribe
from polyadapt_runtime.windows import Window, classify_windows, mean_prediction
from polyadapt_runtime.writing import Token

__version__ = "0.1.0"

__all__ = [
    "ArtifactError",
    "ArtifactInfo",
    "Beams",
    "Bundle",
    "BundleError",
    "CaseResult",
    "Clip",
    "DeviceError",
    "GraphError",
    "InputError",
    "IntegrityError",
    "ManifestError",
    "MissingLibraryError",
    "Prediction",
    "Processor",
    "Sampling",
    "Segment",
    "SelfTest",
    "TensorFileError",
    "Token",
    "UnsafePathError",
    "Window",
    "__version__",
    "classify_windows",
    "mean_prediction",
    "pcm_sound",
    "text_of",
    "transcribe",
]
