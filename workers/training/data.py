"""The labelled texts for training and judging the built-in text heads, and their split."""

from __future__ import annotations

import email
import html
import io
import re
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from email.message import Message
from pathlib import Path
from random import Random

from workers.models.sources import model_source
from workers.settings import built_in_tables

#: A rating nearer to 0 than this is neutral and not used (about a fifth of the sentences).
NEUTRAL = 0.5

#: The seed of the split into parts. Test texts were never trained on as long as both programs use it.
SEED = 20261122

_DOMAINS = {
    "movieReviewSnippets": "movie",
    "amazonReviewSnippets": "amazon",
    "tweets": "tweets",
    "nytEditorialSnippets": "nyt",
}
_TOPICS = {"sports": "sport"}  # folder name: label
_REPLY = re.compile(r"^\s*((re|fw|fwd|aw)\s*(\[\d+\])?:|\[[^\]]*\])\s*", re.IGNORECASE)
_LIST_TAG = re.compile(r"\[[^\]]{1,30}\]\s*")
_UNSEEN = re.compile(r"<(script|style|head|title)\b.*?</\1\s*>|<!--.*?-->", re.IGNORECASE | re.DOTALL)
_TAG = re.compile(r"<[^>]*>")


@dataclass(frozen=True, slots=True)
class Example:
    """A text with its label. A split never parts the examples of one `group` (a mail thread, equal texts)."""

    text: str
    label: str
    group: str
    domain: str


@dataclass(frozen=True, slots=True)
class Split:
    train: list[Example]
    validation: list[Example]
    test: list[Example]


def read_topic(folder: Path) -> list[Example]:
    """Return BBC news articles, titled, with their topic."""
    examples = []
    for path in sorted(folder.glob("*/*.txt")):
        text = path.read_text("utf-8", errors="replace").strip()
        label = _TOPICS.get(path.parent.name, path.parent.name)
        examples.append(Example(text, label, _same(text), "bbc"))
    return _without_repeats(examples)


def read_sentiment(folder: Path) -> list[Example]:
    """Return sentences of four domains as ``negative`` or ``positive`` by the sign of their mean human rating."""
    rated = [one for one in _rated(folder) if abs(float(one.label)) >= NEUTRAL]
    return _without_repeats(replace(one, label="positive" if float(one.label) > 0 else "negative") for one in rated)


def read_ratings(folder: Path) -> list[Example]:
    """Return sentences of four domains with their mean human rating, -4 to 4, as the label."""
    return _without_repeats(_rated(folder))


def _rated(folder: Path) -> Iterator[Example]:
    with tarfile.open(folder / "hutto_ICWSM_2014.tar.gz") as archive:
        for file, domain in _DOMAINS.items():
            content = archive.extractfile(f"hutto_ICWSM_2014/{file}_GroundTruth.txt")
            assert content is not None, "a regular file has content"
            for line in io.TextIOWrapper(content, encoding="latin-1", newline="\n"):
                _, rating, text = line.rstrip("\r\n").split("\t", 2)
                if text := html.unescape(text.strip()):
                    yield Example(text, rating, _same(text), domain)


def read_spam(folder: Path) -> list[Example]:
    """Return mails as ``ham`` or ``spam``: the subject, an empty line, and the visible text."""
    examples = []
    for path in sorted(folder.glob("*/*.txt")):
        message = email.message_from_bytes(path.read_bytes())
        # a mailing list's tag in the subject would tell ham from spam, and users' texts have none
        subject, body = _LIST_TAG.sub("", _subject(message)), _body(message)
        text = f"{subject}\n\n{body}".strip()
        if text:
            label = "spam" if path.parent.name.startswith("spam") else "ham"
            # mails of a thread share words, quotes and signatures: they stay on one side of the split
            thread = _same(_without_reply(subject)) or _same(body)
            examples.append(Example(text, label, thread, path.parent.name))
    return _without_repeats(examples)


READERS: Mapping[str, tuple[str, Callable[[Path], list[Example]]]] = {
    "sentiment": ("ratings", read_sentiment),
    "topic": ("bbc", read_topic),
    "spam": ("mails", read_spam),
}


def read(task: str, cache: Path) -> list[Example]:
    """Return a built-in task's examples, after pulling their source into `cache` if needed."""
    name, reader = READERS[task]
    return reader(pull(name, cache))


def pull(name: str, cache: Path) -> Path:
    """Return the folder of the data that builtin.toml has under this name, after pulling it if it is not there."""
    return pull_built_in("data", name, cache).folder


def pull_built_in(table: str, name: str, cache: Path) -> model_source.Pulled:
    """Return the files of a source in builtin.toml, after pulling them into `cache` if they are not there."""
    source = built_in_tables()[table][name]["source"]
    return model_source.pull(model_source.parse(source, where=f"builtin.toml: {table}.{name}.source"), cache)


def split(examples: Iterable[Example], *, seed: int, validation: float = 0.15, test: float = 0.15) -> Split:
    """Split examples at random, stratified by label and domain, every group as a whole."""
    strata: dict[tuple[str, str], dict[str, list[Example]]] = defaultdict(lambda: defaultdict(list))
    home: dict[str, tuple[str, str]] = {}  # a group belongs to the label and domain of its first example
    for example in examples:
        stratum = home.setdefault(example.group, (example.label, example.domain))
        strata[stratum][example.group].append(example)
    parts = Split([], [], [])
    for stratum in sorted(strata):
        groups = [strata[stratum][name] for name in sorted(strata[stratum])]
        Random(f"{seed} {stratum}").shuffle(groups)  # noqa: S311 (a repeatable split, no secret)
        total = sum(map(len, groups))
        seen = 0
        for group in groups:
            part = (
                parts.test
                if seen < test * total
                else parts.validation
                if seen < (test + validation) * total
                else parts.train
            )
            part.extend(group)
            seen += len(group)
    return parts


def _same(text: str) -> str:
    """Reduce a text to the part that two copies of it share: letters, without case, digits or punctuation."""
    return " ".join(re.findall(r"[^\W\d_]+", text.lower()))


def _without_repeats(examples: Iterable[Example]) -> list[Example]:
    return list({_same(example.text): example for example in examples}.values())


def texts_as_served(examples: Sequence[Example], task: str) -> list[str]:
    """Return the texts to train on. Every second mail has no subject, since users send both forms."""
    if task != "spam":
        return [example.text for example in examples]
    return [without_subject(example.text) if n % 2 else example.text for n, example in enumerate(examples)]


def without_subject(mail: str) -> str:
    return mail.partition("\n\n")[2].strip() or mail


# --- mail -----------------------------------------------------------------------------------------


def _subject(message: Message) -> str:
    raw = str(message.get("Subject", ""))
    try:
        return " ".join(str(make_header(decode_header(raw))).split())
    except (LookupError, ValueError, HeaderParseError):  # an unknown or wrong charset: spam is full of them
        return " ".join(raw.split())


def _without_reply(subject: str) -> str:
    while (shorter := _REPLY.sub("", subject, count=1)) != subject:
        subject = shorter
    return subject


def _body(message: Message) -> str:
    """Return the first plain text part, else the first HTML part without its markup, else nothing."""
    parts = [part for part in message.walk() if part.get_content_maintype() == "text"]
    for kind, read_part in (("text/plain", str), ("text/html", _visible)):
        for part in parts:
            if part.get_content_type() == kind and (text := read_part(_decoded(part)).strip()):
                return text
    return ""


def _decoded(part: Message) -> str:
    payload = part.get_payload(decode=True)
    content = payload if isinstance(payload, bytes) else b""
    try:
        return content.decode(str(part.get_content_charset() or "utf-8"))
    except (LookupError, ValueError):
        return content.decode("latin-1")


def _visible(markup: str) -> str:
    """Return the visible text of an HTML mail, roughly: the mails' HTML is rough too."""
    return " ".join(html.unescape(_TAG.sub(" ", _UNSEEN.sub(" ", markup))).split())
