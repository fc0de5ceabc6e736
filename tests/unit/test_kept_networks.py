"""What is kept of the files that backends make of networks: a model's few that were used last, and never half of
one.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from workers.models.backends.kept import MOST, in_use, made_beside


def cache(folder: Path, model: str, number: int) -> Path:
    """Where a model's network lies, by the digest of what it was made from."""
    return folder / f"{model}-{number:016x}"


def use(place: Path, *, used_at: float) -> None:
    """Start with a network as a backend does, so many seconds into 1970."""
    with in_use(place):
        for suffix in (".bin", ".xml"):
            place.with_name(place.name + suffix).touch()
    for file in place.parent.glob(f"{place.name}*"):
        os.utime(file, (used_at, used_at))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_few_used_last_stay(tmp_path: Path) -> None:
    """Of each model; one's name may be the beginning of another's, and may have dots."""
    for model in ("text", "text-2", "text.v2"):
        for number in range(MOST + 2):
            use(cache(tmp_path, model, number), used_at=number)
    expected = {
        f"{model}-{number:016x}{suffix}"
        for model in ("text", "text-2", "text.v2")
        for number in range(2, MOST + 2)
        for suffix in (".bin", ".xml")
    }
    assert names(tmp_path) == expected


def test_a_start_is_a_use(tmp_path: Path) -> None:
    """The one made first stays as long as somebody starts with it."""
    first = cache(tmp_path, "text", 0)
    for number in range(MOST):
        use(cache(tmp_path, "text", number), used_at=number)
    with in_use(first):
        pass
    use(cache(tmp_path, "text", MOST), used_at=MOST)
    assert f"{first.name}.xml" in names(tmp_path)
    assert f"{cache(tmp_path, 'text', 1).name}.xml" not in names(tmp_path)


def test_nothing_goes_while_anybody_reads(tmp_path: Path) -> None:
    """Who came last removes it."""
    with ExitStack() as readers:
        readers.enter_context(in_use(cache(tmp_path, "text", 0)))
        for number in range(MOST + 3):
            use(cache(tmp_path, "text", number), used_at=number)
        assert len(names(tmp_path)) == 2 * (MOST + 3)
    assert len(names(tmp_path)) == 2 * MOST


def test_a_kill_leaves_no_graph_without_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that finds the graph believes that all of it is there."""
    for number in range(MOST):
        use(cache(tmp_path, "text", number), used_at=number)
    unlink, removed = Path.unlink, 0

    def killed_after_one(path: Path, missing_ok: bool = False) -> None:
        nonlocal removed
        if removed:
            raise KeyboardInterrupt
        removed += 1
        unlink(path, missing_ok=missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed_after_one)
        with pytest.raises(KeyboardInterrupt):
            use(cache(tmp_path, "text", MOST), used_at=MOST)
    graphs = {path.stem for path in tmp_path.glob("*.xml")}
    assert len(graphs) == MOST
    assert graphs < {path.stem for path in tmp_path.glob("*.bin")}
    use(cache(tmp_path, "text", MOST), used_at=MOST)
    assert len(names(tmp_path)) == 2 * MOST, "what was left goes with the next"


def test_what_a_killed_process_was_making_goes(tmp_path: Path) -> None:
    """And what is none of ours stays."""
    place = cache(tmp_path, "text", 0)
    (tmp_path / "README").touch()
    with in_use(place), made_beside(place) as made:
        made.touch()
        os.link(made, tmp_path / "kept")
        abandoned = tmp_path / f"{made.parent.name}-killed"
        abandoned.mkdir()
        (abandoned / "half").touch()
        assert made.exists()
    assert names(tmp_path) == {"README", "kept"}
