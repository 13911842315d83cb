"""Signatures of bundles: who made it, which digests alone cannot say.

A signature follows OpenSSF model-signing 1.1 with the user's own elliptic-curve key (PEM); no service and no network.
It lies in the bundle as `signature.json` and covers every other file, the manifest among them. It is made last: whatever
changes a bundle afterwards breaks it.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import tempfile
from pathlib import Path
from typing import Any

from polyadapt.errors import MissingExtraError, UserError
from polyadapt.files import replacing_file

SIGNATURE = "signature.json"


def sign(bundle: Path, private_key: Path) -> Path:
    """Sign a bundle, in place of an older signature.

    Args:
        bundle: its folder; its files are compared with their digests first.
        private_key: PEM file of an elliptic-curve key (P-256, P-384 or P-521) without a password.

    Returns:
        The signature's file.

    Raises:
        UserError: the key cannot be used.
        BundleError: the folder is no whole bundle (the runtime's error).
    """
    from polyadapt_runtime.manifest import read_manifest

    library = _library("signing a bundle")
    read_manifest(bundle)
    key = _readable(private_key, "key")
    target = bundle / SIGNATURE
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / SIGNATURE
        try:
            config = library.signing.Config().use_elliptic_key_signer(private_key=key).set_hashing_config(_hashing(library, target))
        except Exception as error:  # cryptography raises many classes
            raise UserError(f"{key} is no private key that signs: {_line(error)}; give a PEM file of an elliptic-curve key (P-256, P-384, P-521) without a password") from error
        config.sign(bundle, made)
        with replacing_file(target) as staging:
            shutil.copyfile(made, staging)
    return target


def check_signature(bundle: Path, public_key: Path) -> None:
    """Make sure that the holder of a key signed exactly the files that lie in a bundle.

    Args:
        bundle: its folder.
        public_key: PEM file of the public half of the key.

    Raises:
        UserError: no signature, another key, or files that are not those that were signed.
    """
    library = _library("checking a signature")
    signature, key = bundle / SIGNATURE, _readable(public_key, "key")
    if not signature.is_file() or signature.is_symlink():
        raise UserError(f"{bundle} is not signed: it has no {SIGNATURE}; sign it with `polyadapt sign`, or verify it without --key")
    try:
        config = library.verifying.Config().use_elliptic_key_verifier(public_key=key).set_hashing_config(_hashing(library, signature))
    except Exception as error:  # cryptography raises many classes
        raise UserError(f"{key} is no public key that verifies: {_line(error)}; give the PEM file of the public half of an elliptic-curve key") from error
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # the library prints advice about old signatures
            config.verify(bundle, signature)
    except Exception as error:  # whatever a hostile file makes the library raise
        raise UserError(f"{bundle}: {_cause(error)}") from error


def _cause(error: Exception) -> str:
    """What a failed verification means, in words of ours where the library's are known."""
    text = _line(error)
    if text.startswith("Key mismatch") or type(error).__name__ == "InvalidSignature":
        return "it was signed with another key, or its signature was altered; get the signer's public key, or do not use this bundle"
    if text.startswith("Signature mismatch"):
        return f"its files are not those that were signed ({text.removeprefix('Signature mismatch: ')}); copy the bundle again, or do not use it"
    return f"its {SIGNATURE} cannot be checked ({text or type(error).__name__}); copy the bundle again, or do not use it"


def _hashing(library: Any, signature: Path) -> Any:
    """Every file but the signature, hidden ones included; links are refused."""
    return library.hashing.Config().set_ignored_paths(paths=[signature], ignore_git_paths=False)


def _library(needed_for: str) -> Any:
    try:
        import model_signing
        import model_signing.hashing
        import model_signing.signing
        import model_signing.verifying
    except ImportError as error:
        raise MissingExtraError("model-signing", "signing", needed_for) from error
    return model_signing


def _readable(path: Path, what: str) -> Path:
    if not path.is_file():
        raise UserError(
            f"no {what} {path}; openssl ecparam -name prime256v1 -genkey -noout -out private.pem makes one, openssl ec -in private.pem -pubout -out public.pem its public half"
        )
    return path


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
