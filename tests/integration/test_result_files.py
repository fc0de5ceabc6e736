"""Results that are files: put away before their row, read by reference, gone with their job."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem

from producers.wire.blobs import YOUNG_S, BlobSettings
from producers.wire.errors import BlobsUnavailable, ConfigurationError, FileUnavailable, InvalidInput
from producers.wire.messages import new_id
from producers.wire.result_files import ResultFiles, place_of_files
from workers.models.interface import output_files

PNG = "image/png"


@pytest.fixture(params=["file", "memory"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ResultFiles]:
    if request.param == "file":
        yield ResultFiles(f"file://{tmp_path}/made")
        return
    yield ResultFiles("memory://pictures/made")
    fs = fsspec.filesystem("memory")
    if fs.exists("/pictures"):
        fs.rm("/pictures", recursive=True)


def test_a_file_is_named_by_its_content(files: ResultFiles) -> None:
    """So an envelope that is computed twice has one file, and one reference."""
    job = new_id()
    first, again = (files.put(job, b"drawn", PNG) for _ in range(2))
    assert first == again
    assert first["uri"].endswith(f"/{job}/{first['sha256']}.png")
    assert (first["bytes"], files.read(first)) == (5, b"drawn")
    fs, root = fsspec.core.url_to_fs(files.url)
    assert len(fs.find(f"{root}/{job}")) == 1


def test_what_was_cut_off_is_written_again(files: ResultFiles) -> None:
    """A worker that was killed while it wrote left half a file, and no row."""
    job = new_id()
    reference = files.put(job, b"drawn", PNG)
    fs, root = fsspec.core.url_to_fs(files.url)
    fs.pipe_file(f"{root}/{job}/{reference['sha256']}.png", b"dra")
    with pytest.raises(FileUnavailable, match="sha256 differs"):
        files.read(reference)
    assert files.read(files.put(job, b"drawn", PNG)) == b"drawn"


def test_who_dies_while_it_writes_leaves_anothers_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of a job make the same picture at once; the faster one's row is committed, and there it is told where the
    file is.
    """
    files, job = ResultFiles(f"file://{tmp_path}"), new_id()
    reference = files.put(job, b"drawn", PNG)
    file = Path(reference["uri"].removeprefix("file://"))
    file.write_bytes(b"dra")  # the faster one, not through yet

    def killed(_: object, path: str, data: bytes) -> None:
        file.write_bytes(b"drawn")
        Path(path).write_bytes(data[:1])
        raise OSError("killed")

    monkeypatch.setattr(LocalFileSystem, "pipe_file", killed)
    with pytest.raises(BlobsUnavailable, match="killed"):
        files.put(job, b"drawn", PNG)
    assert files.read(reference) == b"drawn"


def test_a_reference_leads_nowhere_but_below_the_url(files: ResultFiles, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    for uri in (f"file://{tmp_path}/secret", f"{new_id()}/../../secret", "x", f"{new_id()}/{'0' * 64}.exe", None):
        with pytest.raises(InvalidInput, match="not the place of a result's file"):
            files.read({"uri": uri})
    with pytest.raises(FileUnavailable, match="is missing"):
        files.read({"uri": f"{new_id()}/{'0' * 64}.png"})


def test_files_go_with_their_job(files: ResultFiles) -> None:
    kept, purged = new_id(), new_id()
    references = [files.put(job, b"drawn", PNG) for job in (kept, purged)]
    assert files.sweep(lambda _: {kept}) == 0  # young: its row may be about to be committed
    later = ResultFiles(files.url, clock=lambda: time.time() + YOUNG_S + 1)
    assert later.sweep(lambda _: {kept}) == 1
    assert files.read(references[0]) == b"drawn"
    with pytest.raises(FileUnavailable):
        files.read(references[1])
    assert later.sweep(lambda _: {kept}) == 0


def test_a_fleet_on_sqlite_has_a_place_for_files_and_one_on_postgresql_must_name_it(tmp_path: Path) -> None:
    assert place_of_files(BlobSettings(), f"sqlite:///{tmp_path}/store.db") == f"file://{tmp_path}/store.db.files"
    assert place_of_files(BlobSettings(url="s3://bucket/argosy"), "postgresql://h/argosy") == "s3://bucket/argosy/made"
    with pytest.raises(ConfigurationError, match=r"no place for results that are files; .*\[blobs\] url"):
        place_of_files(BlobSettings(), "postgresql://user@host/argosy")


def test_a_place_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "made").write_text("no folder")
    with pytest.raises(BlobsUnavailable, match=r"check that \[blobs\] url can be reached and written"):
        ResultFiles(f"file://{tmp_path}/made").put(new_id(), b"drawn", PNG)


def test_files_in_an_output_become_references(files: ResultFiles) -> None:
    job = new_id()
    drawn = output_files.picture(np.full((2, 3, 3), 128, dtype=np.uint8), "webp")
    output = output_files.put_away(
        {"image": drawn, "seed": 7}, lambda data, media_type: files.put(job, data, media_type)
    )
    assert output["seed"] == 7
    assert (output["image"]["width"], output["image"]["height"]) == (3, 2)
    assert output["image"]["media_type"] == "image/webp"
    assert files.read(output["image"]) == drawn.data
