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
from polyadapt_runtime.writing import Token

__version__ = "0.1.0"

__all__ = [
    "ArtifactError",
    "ArtifactInfo",
    "Beams",
    "Bundle",
    "BundleError",
    "CaseResult",
    "DeviceError",
    "GraphError",
    "InputError",
    "IntegrityError",
    "ManifestError",
    "MissingLibraryError",
    "Prediction",
    "Processor",
    "Sampling",
    "SelfTest",
    "TensorFileError",
    "Token",
    "UnsafePathError",
    "__version__",
]
