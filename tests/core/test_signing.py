"""Signatures of bundles by one's own key: what was signed passes, everything else is one clear line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from polyadapt.cli import main
from polyadapt.errors import MissingExtraError, UserError
from polyadapt.families.mlp_policy.card import CARD as POLICY
from polyadapt.signing import SIGNATURE, check_signature, sign
from polyadapt.testing.conformance import tiny_model
from polyadapt_onnx.exporter import export
from polyadapt_runtime import Bundle, BundleError, IntegrityError
from polyadapt_runtime.seal import sealed

pytest.importorskip("model_signing", reason="signs bundles; run: pip install 'polyadapt[signing]'")


def write_pair(folder: Path, name: str, private: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> tuple[Path, Path]:
    secret, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    secret.write_bytes(private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    public.write_bytes(private.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
    return secret, public


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    write_pair(folder, "mine", ec.generate_private_key(ec.SECP256R1()))
    write_pair(folder, "other", ec.generate_private_key(ec.SECP384R1()))
    write_pair(folder, "rsa", rsa.generate_private_key(65537, 2048))
    return folder


@pytest.fixture(scope="module")
def signed_once(keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = export(tiny_model(POLICY), {}, tmp_path_factory.mktemp("signed") / "policy.bundle").directory
    assert sign(root, keys / "mine.pem") == root / SIGNATURE
    return root


@pytest.fixture
def signed(signed_once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(signed_once, tmp_path / "copy.bundle"))


def test_a_signed_bundle_passes_and_still_runs(signed: Path, keys: Path) -> None:
    check_signature(signed, keys / "mine.pub.pem")
    assert Bundle(signed, device="cpu").selftest().ok
    assert SIGNATURE not in json.loads((signed / "manifest.json").read_text())["files"]


def test_the_command_line_signs_and_verifies(signed: Path, keys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (signed / SIGNATURE).unlink()
    public = str(keys / "mine.pub.pem")
    assert main(["verify", str(signed), "--key", public]) == 1
    assert "is not signed: it has no signature.json" in capsys.readouterr().err
    assert main(["sign", str(signed), "--key", str(keys / "mine.pem")]) == 0
    assert "signature.json" in capsys.readouterr().out
    assert main(["verify", str(signed), "--key", public]) == 0
    assert "signed with this key, every file is as recorded" in capsys.readouterr().out
    assert main(["verify", str(signed), "--key", public, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] and found["is_signature_checked"]
    assert main(["verify", str(signed), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["is_signature_checked"] is False


def test_the_librarys_own_command_verifies_it(signed: Path, keys: Path) -> None:
    """The line that stands in docs/formats.md."""
    arguments = ["--signature", signed / SIGNATURE, "--public_key", keys / "mine.pub.pem", "--ignore-paths", signed / SIGNATURE, "--no-ignore-git-paths"]
    command = [sys.executable, "-m", "model_signing", "verify", "key", signed, *arguments]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    (signed / "README.md").write_text("other")
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0


def test_signing_again_replaces_the_signature(signed: Path, keys: Path) -> None:
    sign(signed, keys / "other.pem")
    check_signature(signed, keys / "other.pub.pem")
    with pytest.raises(UserError, match="another key"):
        check_signature(signed, keys / "mine.pub.pem")
    assert not [path for path in signed.iterdir() if "partial" in path.name]


@pytest.mark.parametrize("key", ["other.pub.pem", "mine.pem", "rsa.pub.pem", "absent.pem"])
def test_a_wrong_key_is_one_clear_line(signed: Path, keys: Path, key: str, capsys: pytest.CaptureFixture[str]) -> None:
    reason = {"other.pub.pem": "signed with another key", "absent.pem": "openssl"}.get(key, "no public key that verifies")
    assert main(["verify", str(signed), "--key", str(keys / key)]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and captured.err.count("\n") == 1 and reason in captured.err


@pytest.mark.parametrize("key", ["mine.pub.pem", "rsa.pem", "absent.pem"])
def test_a_key_that_cannot_sign_leaves_no_signature(signed: Path, keys: Path, key: str) -> None:
    (signed / SIGNATURE).unlink()
    with pytest.raises(UserError, match=r"openssl|elliptic-curve"):
        sign(signed, keys / key)
    assert not (signed / SIGNATURE).exists()


def reseal(root: Path, name: str) -> None:
    """What an attacker does who can write the manifest too."""
    from polyadapt.files import sha256_file

    table = json.loads((root / "manifest.json").read_text())
    table["files"][name] = {"sha256": sha256_file(root / name), "size": (root / name).stat().st_size}
    (root / "manifest.json").write_text(sealed(table))


def change_weights(root: Path) -> None:
    name = "onnx/model.onnx.data"
    data = bytearray((root / name).read_bytes())
    data[100] ^= 1
    (root / name).write_bytes(data)
    reseal(root, name)


def change_labels(root: Path) -> None:
    table = json.loads((root / "manifest.json").read_text())
    table["licences"] = {"weights": "public domain"}
    (root / "manifest.json").write_text(sealed(table))


def add_a_file(root: Path) -> None:
    (root / ".gitignore").write_text("*")
    reseal(root, ".gitignore")


def remove_a_file(root: Path) -> None:
    (root / "README.md").unlink()
    table = json.loads((root / "manifest.json").read_text())
    del table["files"]["README.md"]
    (root / "manifest.json").write_text(sealed(table))


@pytest.mark.parametrize("tamper", [change_weights, change_labels, add_a_file, remove_a_file])
def test_what_digests_alone_cannot_see_breaks_the_signature(signed: Path, keys: Path, tamper: Callable[[Path], None], capsys: pytest.CaptureFixture[str]) -> None:
    """Each of these leaves a bundle that opens: whoever changed it wrote the digests anew."""
    tamper(signed)
    Bundle(signed, device="cpu")
    assert main(["verify", str(signed), "--key", str(keys / "mine.pub.pem")]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and "not those that were signed" in captured.err


@pytest.mark.parametrize("content", [b"", b"{}", b"null", b"\xff\xfe", b'{"mediaType": "other"}', b"[" * 100_000])
def test_a_broken_signature_is_one_clear_line(signed: Path, keys: Path, content: bytes) -> None:
    (signed / SIGNATURE).write_bytes(content)
    with pytest.raises(UserError, match="cannot be checked"):
        check_signature(signed, keys / "mine.pub.pem")
    Bundle(signed, device="cpu")  # the runtime reads no signature


def test_a_signature_from_another_bundle_does_not_count(signed: Path, keys: Path, tmp_path: Path) -> None:
    other = export(tiny_model(POLICY, seed=1), {}, tmp_path / "other.bundle").directory
    shutil.copy(signed / SIGNATURE, other / SIGNATURE)
    with pytest.raises(UserError, match="not those that were signed"):
        check_signature(other, keys / "mine.pub.pem")


def test_a_linked_signature_is_refused(signed: Path, keys: Path, tmp_path: Path) -> None:
    shutil.move(signed / SIGNATURE, tmp_path / "elsewhere.json")
    (signed / SIGNATURE).symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(UserError, match="is not signed"):
        check_signature(signed, keys / "mine.pub.pem")
    with pytest.raises(BundleError, match="link"):
        Bundle(signed, device="cpu")


def test_a_broken_bundle_is_not_signed(signed: Path, keys: Path) -> None:
    (signed / "README.md").write_text("other")
    (signed / SIGNATURE).unlink()
    with pytest.raises(IntegrityError, match="README"):
        sign(signed, keys / "mine.pem")
    assert not (signed / SIGNATURE).exists()


def test_without_the_library_the_command_is_named(signed: Path, keys: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(MissingExtraError):
        check_signature(signed, keys / "mine.pub.pem")
    assert main(["sign", str(signed), "--key", str(keys / "mine.pem")]) == 1
    assert "pip install 'polyadapt[signing]'" in capsys.readouterr().err
