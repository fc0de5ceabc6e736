"""A file that is replaced is whole at every moment, whoever reads or writes meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest

from producers.wire.atomic_files import atomically


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_appears_when_it_is_written_to_its_end(tmp_path: Path, durable: bool) -> None:
    """Until then readers have the file before."""
    file = tmp_path / "kept.json"
    file.write_text("before")

    with atomically(file, durable=durable) as part:
        part.write_text("after")
        assert file.read_text() == "before"

    assert file.read_text() == "after"
    assert list(tmp_path.iterdir()) == [file]


def test_a_writer_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    """A disk that is full, or Ctrl-C: nothing of the attempt stays."""
    file = tmp_path / "kept.json"
    file.write_text("before")

    def interrupted() -> None:
        with atomically(file) as part:
            part.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()

    assert file.read_text() == "before"
    assert list(tmp_path.iterdir()) == [file]


def test_two_writers_do_not_mix(tmp_path: Path) -> None:
    """Workers that start at once keep what they measured in the same file."""
    file = tmp_path / "kept.json"

    with atomically(file) as first, atomically(file) as second:
        first.write_text("first")
        second.write_text("second")

    assert file.read_text() == "first"  # the block that ended last
    assert list(tmp_path.iterdir()) == [file]
