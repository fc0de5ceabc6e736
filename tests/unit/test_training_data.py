"""Training data: what a mail's reader sees, and a split that does not leak."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from workers.training import data
from workers.training.data import Example


def examples(count: int, label: str, domain: str = "d", per_group: int = 1) -> list[Example]:
    return [Example(f"{label} {domain} {n}", label, f"{label}{domain}{n // per_group}", domain) for n in range(count)]


def test_a_split_keeps_shares_of_labels_and_domains() -> None:
    """A rare label that is missing from the test part would be judged by nothing."""
    known = examples(200, "a") + examples(40, "b") + examples(40, "b", "other")
    parts = data.split(known, seed=1)
    assert Counter(len(part) for part in (parts.train, parts.validation, parts.test)) == Counter([196, 42, 42])
    assert Counter((e.label, e.domain) for e in parts.test) == {("a", "d"): 30, ("b", "d"): 6, ("b", "other"): 6}


def test_a_group_stays_on_one_side() -> None:
    """A mail thread quotes itself: half of it in training would give the other half away."""
    parts = data.split(examples(300, "a", per_group=7), seed=1)
    groups = [{example.group for example in part} for part in (parts.train, parts.validation, parts.test)]
    assert sum(map(len, groups)) == len(set.union(*groups))


def test_a_split_repeats() -> None:
    """Evaluation in another process must find the test part that training did not see, in whatever order files come."""
    known = examples(100, "a")
    assert data.split(known, seed=1) == data.split(list(reversed(known)), seed=1)
    assert data.split(known, seed=1) != data.split(known, seed=2)


def mail(folder: Path, name: str, content: bytes) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def test_mails_are_read_as_their_readers_do(tmp_path: Path) -> None:
    """Encodings, HTML and list tags are the mail program's business; the head sees subject and text."""
    mail(
        tmp_path,
        "spam-1/1.txt",
        b"Subject: =?iso-8859-1?Q?Caf=E9?= free\nContent-Type: text/html\n\n<style>x</style><p>Click&nbsp;<b>here</b>",
    )
    mail(
        tmp_path, "easy-ham-1/1.txt", b"Subject: Re: [list] Fwd: a  plan\nContent-Transfer-Encoding: base64\n\naGVsbG8="
    )
    mail(tmp_path, "easy-ham-1/2.txt", b"Subject: a plan\n\nanother")
    mail(tmp_path, "easy-ham-1/3.txt", b"Subject: a plan\n\nAnother!!")
    mail(
        tmp_path,
        "spam-2/1.txt",
        b"Subject: =?no-such-charset?Q?hm?=\nContent-Type: multipart/alternative; boundary=b\n\n--b\nContent-Type: text/html\n\n<p>no\n"
        b"--b\nContent-Type: text/plain; charset=no-such\n\nyes \xe9\n--b--\n",
    )
    found = {example.text: example for example in data.read_spam(tmp_path)}
    assert set(found) == {
        "Café free\n\nClick here",
        "Re: Fwd: a plan\n\nhello",
        "a plan\n\nAnother!!",
        "=?no-such-charset?Q?hm?=\n\nyes é",
    }
    assert found["Re: Fwd: a plan\n\nhello"].group == found["a plan\n\nAnother!!"].group == "a plan"
    assert [example.label for example in found.values()].count("spam") == 2
