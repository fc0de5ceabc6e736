"""Sentence pairs out of package descriptions, and that no package or sentence is both trained on and judged by."""

from __future__ import annotations

from pathlib import Path

import pytest

from workers.shipped_heads.text import descriptions
from workers.shipped_heads.text.descriptions import family, paragraphs, part

ENGLISH = """Package: foo
Description-md5: 1
Description-en: viewer for pictures
 Foo shows pictures. It is
 quick.
 .
  * reads PNG
  * reads JPEG

Package: libfoo-dev
Description-md5: 2
Description-en: viewer for pictures
 Files for developers.

Package: bar
Description-md5: 3
Description-en: same in both
 Only in English.
"""

FRENCH = """Package: foo
Description-md5: 1
Description-fr: visionneuse d\u2019images
 Foo affiche des images. Il est
 rapide.
 .
  \u2013 lit le PNG\u00a0;
  \u2013 lit le JPEG.

Package: libfoo-dev
Description-md5: 2
Description-fr: visionneuse d'images
 Fichiers pour les
 d\u00e9veloppeurs.

Package: bar
Description-md5: 3
Description-fr: same in both
 Ceci.
 .
 Cela.
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "Translation-en").write_text(ENGLISH, encoding="utf-8")
    (tmp_path / "Translation-fr").write_text(FRENCH, encoding="utf-8")
    return tmp_path


def test_sentences_stand_beside_their_translations_once(folder: Path) -> None:
    """The synopsis, sentences and a list's lines; marks that only the translation has are gone, as is what was not
    aligned.
    """
    found = descriptions.pairs(folder / "Translation-en", folder / "Translation-fr")
    assert [(pair.source, pair.target) for pair in found] == [
        ("viewer for pictures", "visionneuse d'images"),
        ("Foo shows pictures.", "Foo affiche des images."),
        ("It is quick.", "Il est rapide."),
        ("reads PNG", "lit le PNG"),
        ("reads JPEG", "lit le JPEG"),
        ("Files for developers.", "Fichiers pour les d\u00e9veloppeurs."),
    ]
    assert {pair.family for pair in found} == {"foo"}


def test_packages_of_one_origin_are_in_one_part() -> None:
    names = ["libfoo2", "foo", "foo-doc", "python3-foo", "libfoo-dev", "foo2.1-data"]
    assert {family(name) for name in names} == {"foo"}
    assert len({part(family(name)) for name in names}) == 1


def test_parts_are_of_the_size_that_is_said() -> None:
    parts = [part(f"name{number}") for number in range(20_000)]
    assert parts.count("test") == pytest.approx(20_000 / 32, rel=0.15)
    assert parts.count("validation") == pytest.approx(20_000 / 32, rel=0.15)


def test_what_follows_the_synopsis_is_not_part_of_it() -> None:
    assert paragraphs("synopsis\n first line\n goes on\n .\n second") == ["synopsis", "first line goes on", "second"]
