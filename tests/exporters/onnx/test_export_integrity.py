"""Every file of a bundle that was really exported: damaged, cut, moved, added, linked; each is noticed, by digests or by the signature."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from polyadapt.errors import UserError
from polyadapt.families.mlp_policy.card import CARD as POLICY
from polyadapt.host import Host
from polyadapt.methods.base import load_method
from polyadapt.signing import SIGNATURE, check_signature, sign
from polyadapt.testing.conformance import tiny_model
from polyadapt.testing.exporting import adapted_artifact
from polyadapt_onnx.exporter import export
from polyadapt_runtime import Bundle, BundleError, IntegrityError, UnsafePathError
from polyadapt_runtime.manifest import read_manifest

pytest.importorskip("model_signing", reason="signs bundles; run: pip install 'polyadapt[signing]'")

MANIFEST = "manifest.json"
PLACES = (0.0, 0.13, 0.5, 0.77, 1.0)
FILES = [
    "README.md",
    "artifacts/lora/slots.json",
    "artifacts/lora/slots.safetensors",
    MANIFEST,
    "onnx/model.onnx",
    "onnx/model.onnx.data",
    "onnx/model_slots.onnx",
    "onnx/model_slots.safetensors",
    "parity/cases.json",
    "parity/cases.safetensors",
    "parity/report.json",
    SIGNATURE,
]
LISTED = [name for name in FILES if name not in (MANIFEST, SIGNATURE)]


class Signed:
    """A signed bundle and the key that verifies it."""

    def __init__(self, folder: Path) -> None:
        model, cards = tiny_model(POLICY), {claim.card.id: claim.card for claim in Host().registry.methods.claims()}
        self.root = export(model, {"lora": adapted_artifact(load_method(cards["lora"]), model)}, folder / "policy.bundle").directory
        secret, self.key = folder / "private.pem", folder / "public.pem"
        private = ec.generate_private_key(ec.SECP256R1())
        secret.write_bytes(private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
        self.key.write_bytes(private.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
        sign(self.root, secret)


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Signed:
    return Signed(tmp_path_factory.mktemp("signed"))


@pytest.fixture
def root(signed: Signed, tmp_path: Path) -> Path:
    return Path(shutil.copytree(signed.root, tmp_path / "copy.bundle"))


def test_these_are_all_files(signed: Signed) -> None:
    assert sorted(path.relative_to(signed.root).as_posix() for path in signed.root.rglob("*") if path.is_file()) == sorted(FILES)
    check_signature(signed.root, signed.key)
    assert Bundle(signed.root, device="cpu").selftest().ok


def test_the_manifest_notices_a_flipped_bit_in_any_byte(root: Path) -> None:
    path = root / MANIFEST
    whole = path.read_bytes()
    for place in range(0, len(whole), 61):
        data = bytearray(whole)
        data[place] ^= 1 << place % 8
        path.write_bytes(data)
        with pytest.raises(BundleError):
            read_manifest(root)
    path.write_bytes(whole)
    read_manifest(root)


@pytest.mark.parametrize("name", LISTED)
def test_digests_notice_a_flipped_bit_anywhere(root: Path, name: str) -> None:
    whole = (root / name).read_bytes()
    for place in PLACES:
        data = bytearray(whole)
        data[int(place * (len(data) - 1))] ^= 1
        (root / name).write_bytes(data)
        with pytest.raises(IntegrityError, match=name):
            Bundle(root, device="cpu")


@pytest.mark.parametrize("name", FILES)
def test_the_signature_notices_a_flipped_bit_anywhere(signed: Signed, root: Path, name: str) -> None:
    """The manifest and the signature itself included: no digest of theirs stands anywhere else."""
    whole = (root / name).read_bytes()
    for place in PLACES:
        data = bytearray(whole)
        data[int(place * (len(data) - 1))] ^= 1
        (root / name).write_bytes(data)
        with pytest.raises(UserError, match="copy.bundle"):
            check_signature(root, signed.key)


def truncated(path: Path, outside: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def longer(path: Path, outside: Path) -> None:
    with open(path, "ab") as stream:
        stream.write(b"\n")


def removed(path: Path, outside: Path) -> None:
    path.unlink()


def renamed(path: Path, outside: Path) -> None:
    path.rename(path.with_name(f"other-{path.name}"))


def linked(path: Path, outside: Path) -> None:
    shutil.move(path, outside)
    path.symlink_to(outside)


def hard_linked(path: Path, outside: Path) -> None:
    os.link(path, outside)


def piped(path: Path, outside: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("damage", [truncated, longer, removed, renamed, linked, hard_linked, piped])
@pytest.mark.parametrize("name", [name for name in FILES if name != SIGNATURE])
def test_what_is_no_longer_the_file_is_noticed(signed: Signed, root: Path, tmp_path: Path, name: str, damage: Callable[[Path, Path], None]) -> None:
    damage(root / name, tmp_path / "outside")
    with pytest.raises(UnsafePathError if damage in (linked, hard_linked) else BundleError):
        Bundle(root, device="cpu")
    if damage is not hard_linked:  # its content is what was signed; that it may change later is what the runtime refuses
        with pytest.raises(UserError, match="copy.bundle"):
            check_signature(root, signed.key)


def test_what_is_added_is_noticed(signed: Signed, root: Path) -> None:
    for name in ("extra.bin", "onnx/other.onnx", ".hidden", ".git/config", "artifacts/lora/SIGNATURE.json"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"x")
        with pytest.raises(IntegrityError, match="not listed"):
            Bundle(root, device="cpu")
        with pytest.raises(UserError, match="not those that were signed"):
            check_signature(root, signed.key)
        (root / name).unlink()
    assert Bundle(root, device="cpu").selftest().ok


def test_files_that_changed_places_are_noticed(signed: Signed, root: Path) -> None:
    first, second = root / "parity/cases.json", root / "parity/report.json"
    first.rename(root / "x")
    second.rename(first)
    (root / "x").rename(second)
    with pytest.raises(IntegrityError):
        Bundle(root, device="cpu")
    with pytest.raises(UserError):
        check_signature(root, signed.key)
