"""Who is in a step, what of a text is certain, which prompts begin alike, and how tasks that are prompts are
declared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from producers.client.text_streams import TextPieces
from producers.wire.catalogue import Catalogue
from producers.wire.errors import ConfigurationError, StreamRestarted
from workers.models.generation.key_value_memory import Block, CacheShape
from workers.models.generation.prefixes import Prefixes
from workers.models.generation.writing import TextWriter
from workers.models.interface import step_rota


@dataclass
class Stander:
    number: int
    urgency: int = 3
    needs: int = 10**9
    steps: int = 0
    waited: int = 0
    kept_until: int = 0


def test_the_urgent_are_in_every_step() -> None:
    """However many others there are, as long as one place is left for those."""
    line = [Stander(n, urgency=9) for n in range(20)] + [Stander(100 + n, urgency=0) for n in range(7)]
    for _ in range(300):
        chosen = {one.number for one in step_rota.choose(line, 8)}
        assert chosen >= set(range(100, 107))


def test_a_short_one_is_not_kept_by_long_ones() -> None:
    """It gets a place within a turn of theirs, though it came last."""
    line = [Stander(n) for n in range(8)]
    for _ in range(step_rota.TURN_STEPS):
        step_rota.choose(line, 8)
    line.append(Stander(8))
    assert 8 in [one.number for one in step_rota.choose(line, 8)]


@given(st.lists(st.tuples(st.sampled_from([0, 3, 9]), st.integers(1, 60)), min_size=1, max_size=24), st.integers(2, 8))
def test_everybody_is_served_within_the_promise(wanted: list[tuple[int, int]], places: int) -> None:
    """Beside a flood of short urgent requests that never ends, nobody waits longer than the module says."""
    line = [Stander(n, urgency, needs) for n, (urgency, needs) in enumerate(wanted)]
    first = len(line)
    numbers = first
    most = (
        step_rota.PATIENCE_STEPS + (first + places) * step_rota.TURN_STEPS
    )  # of all that wait at first: later ones are fewer
    while any(one.number < first for one in line):
        while sum(one.number >= first for one in line) < places:
            line.append(Stander(numbers, urgency=0, needs=5))
            numbers += 1
        chosen = step_rota.choose(line, places)
        assert len(chosen) == min(places, len(line))
        assert all(one.waited <= most for one in line)
        line = [one for one in line if one.steps < one.needs]


class Letters:
    """A tokenizer whose tokens are bytes, as byte-level ones may be."""

    def decode(self, tokens: list[int], *, skip_special_tokens: bool) -> str:
        return bytes(tokens).decode("utf-8", "replace")

    def id_to_token(self, token: int) -> str:
        return chr(token)


@given(
    st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=30),
    st.lists(st.text(min_size=1, max_size=4), max_size=3),
)
def test_pieces_are_the_text_up_to_the_first_stop(text: str, stops: list[str]) -> None:
    """Nothing is told that would have to be taken back; half a character is not told at all."""
    writer = TextWriter(Letters(), stops)  # type: ignore[arg-type]
    told = ""
    for byte in text.encode():
        writer.add(byte)
        piece, at = writer.piece()
        assert at == len(told)
        told += piece
        if writer.stopped:
            break
    writer.end()
    told += writer.piece()[0]
    assert told == writer.text
    # the earliest end counts, as it is the first that is written
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    first = min((end for end, _ in ends), default=None)
    expected = text if first is None else text[: min(start for end, start in ends if end == first)]
    assert told == expected


class Pieces:
    """A tokenizer of SentencePiece: a space begins a word, but not the first one; token 0 is not shown."""

    WORDS = ("", "\u2581a", "b", "\u2581")

    def decode(self, tokens: list[int], *, skip_special_tokens: bool) -> str:
        text = "".join(self.WORDS[token] for token in tokens).replace("\u2581", " ")
        return text.removeprefix(" ")

    def id_to_token(self, token: int) -> str:
        return self.WORDS[token]


@given(st.lists(st.integers(0, 3), max_size=8))
def test_a_token_that_is_not_shown_takes_no_space_away(tokens: list[int]) -> None:
    writer = TextWriter(Pieces(), ())  # type: ignore[arg-type]
    for token in tokens:
        writer.add(token)
    writer.end()
    assert writer.text == Pieces().decode(tokens, skip_special_tokens=True)


def with_bytes() -> Tokenizer:
    """Return a tokenizer with a word and a token for each byte, as Llama's."""
    names = ["\u2581a", *(f"<0x{byte:02X}>" for byte in range(256))]
    made = Tokenizer(models.BPE({name: number for number, name in enumerate(names)}, [], byte_fallback=True))
    made.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return made


BYTES = with_bytes()


@given(st.lists(st.sampled_from([*range(256), 0, 1 + 0xE6, 1 + 0x9D, 1 + 0xB1]), max_size=40))
def test_bytes_that_follow_one_another_are_read_together(tokens: list[int]) -> None:
    """One byte that is no text makes all of its neighbours none, as in transformers."""
    writer = TextWriter(BYTES, ())
    for token in tokens:
        writer.add(token)
    writer.end()
    assert writer.text == BYTES.decode(tokens).replace("\0", "\ufffd")


def test_many_bytes_are_told_before_their_end() -> None:
    writer = TextWriter(BYTES, ())
    for byte in "東".encode() * 40:
        writer.add(1 + byte)
    assert writer.piece()[0].startswith("東東東")
    writer.add(1 + 0xE6)
    writer.end()
    assert writer.text == "東" * 22 + "\ufffd" * 55  # whatever is told is not taken back


def test_the_rest_comes_with_the_result() -> None:
    """Pieces that were lost, or came twice after a device was restarted, leave the text whole."""
    pieces = TextPieces()
    assert pieces.take(b'[0, "Once "]') == "Once "
    assert pieces.take(b'[0, "Once upon"]') == "upon"
    assert pieces.take(b'[12, "time"]') == ""
    assert pieces.rest("Once upon a time") == " a time"


def test_pieces_of_another_text_are_left_out_and_told() -> None:
    """A worker dies while it writes, and another one writes another text: its pieces fit no longer by their places."""
    pieces = TextPieces()
    assert pieces.take(b'[0, "Once upon"]') == "Once upon"
    assert pieces.take(b'[0, "In the "]') == ""
    assert pieces.take(b'[7, "beginning was"]') == ""
    with pytest.raises(StreamRestarted, match="stands in `result`"):
        pieces.rest("In the beginning was")
    assert pieces.rest("Once upon a time") == " a time"


@pytest.mark.parametrize("data", [b"", b"\xff", b"[]", b"5", b'["x", 1]', b'[-5, "forged"]', b"[" * 100_000])
def test_a_piece_that_somebody_else_wrote_is_ignored(data: bytes) -> None:
    pieces = TextPieces()
    assert pieces.take(data) == ""
    assert pieces.take(b'[0, "Once"]') == "Once"


def kept(tokens: int) -> torch.Tensor:
    return torch.arange(tokens, dtype=torch.float32).reshape(1, 1, 1, tokens, 1)


def test_the_longest_known_beginning_is_found() -> None:
    prefixes = Prefixes(64)
    prefixes.keep(range(20), kept(20))
    prefixes.keep([*range(12), *range(90, 100)], kept(22))
    found = prefixes.find([*range(15), 77, 78])
    assert found is not None
    assert found.shape[3] == 15
    whole = prefixes.find(list(range(20)))
    assert whole is not None
    assert whole.shape[3] == 19, "the last token is left to be read"
    assert prefixes.find(list(range(5))) is None
    prefixes.keep(range(30), kept(30))
    assert prefixes.tokens == 52, "what it extends is not held twice"
    prefixes.keep(range(100, 130), kept(30))
    assert prefixes.tokens <= 64


def test_a_block_takes_what_its_rows_need() -> None:
    """One long text among short ones is not made room for in as many rows as there ever were; when all have left,
    nothing is.
    """
    shape = CacheShape(2, 1, 4, torch.float32, "cpu")
    block, random = Block(shape), torch.Generator().manual_seed(1)

    def row(tokens: int) -> torch.Tensor:
        return torch.randn((2, 2, 1, tokens, 4), generator=random)

    short = [row(n) for n in range(1, 9)]
    for own in short:
        block.add(own)
    for _ in range(6):
        block.drop(0)
    left = {0: short[2], 1: short[1]}  # the last one takes the place of who leaves
    long = row(5000)
    assert block.add(long) == 2
    assert block.bytes < 4 * long.nbytes
    assert block.drop(2) is None
    for number in range(2, 6):
        block.add(short[number])
    assert block.bytes < long.nbytes
    for number, own in left.items():
        assert torch.equal(block.kept(number), own)
    while len(block):
        block.drop(0)
    assert block.bytes == 0


def test_a_prompt_may_stand_in_the_task_itself() -> None:
    """Or among its parameters; what is missing is asked for, what is wrong is named."""
    table = {"kind": "prompted-classification", "prompt": "Is it {input}?", "labels": ["yes", "no"]}
    for tasks in (table, {"kind": table["kind"], "params": {k: table[k] for k in ("prompt", "labels")}}):
        catalogue = Catalogue({}).with_models({"chat": {"tasks": {"is-it": tasks}}}, where="fleet.toml")
        params: Any = catalogue.check_params(catalogue.task("is-it"), {}, field="params")
        assert params.labels == ("yes", "no")
    for wrong, problem in (
        ({**table, "prompt": "no place"}, "{input} once"),
        ({**table, "labels": ["yes"]}, "2 to 100"),
        ({**table, "label": ["yes"]}, "label: not a key of a task"),
        ({"kind": "text-classification", "prompt": "x"}, "prompt: not a key of a task"),
    ):
        with pytest.raises(ConfigurationError, match=problem):
            Catalogue({}).with_models({"chat": {"tasks": {"is-it": wrong}}}, where="fleet.toml")
