"""ASCII texts get the same tokens with and without the tokenizer's normalizer."""

from __future__ import annotations

import os
import string
import subprocess
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from workers.models.huggingface.ascii_texts import AsciiTexts, encode_batch

ADDED = [
    AddedToken("[MASK]", special=True, lstrip=True, normalized=False),
    AddedToken("[cls]", special=True, normalized=False),
    AddedToken("Café", normalized=True),
    AddedToken("new word", normalized=True, single_word=True),
    AddedToken("a\tb", normalized=False),
]

NORMALIZERS = {
    "uncased": lambda: normalizers.BertNormalizer(lowercase=True),
    "cased": lambda: normalizers.BertNormalizer(lowercase=False),
    "lower case before": lambda: normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.BertNormalizer(lowercase=False)]
    ),
    "nothing removed": lambda: normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]),
}

#: Parts of texts, so that added tokens, and tokens with a removed character inside, are frequent.
PARTS = st.sampled_from(
    [
        "[MASK]",
        "[mask]",
        "[CLS]",
        "[c\x00ls]",
        "[cls]",
        "cafe",
        "CAFE",
        "café",
        "new word",
        "New\tWord",
        "a\tb",
        "a b",
        "\x7f",
        "\r\n",
    ]
)
TEXTS = st.lists(st.one_of(PARTS, st.text(st.characters(max_codepoint=127), max_size=6), st.text(max_size=3))).map(
    "".join
)


def tokenizer(normalizer: normalizers.Normalizer, added: list[AddedToken] = ADDED) -> Tokenizer:
    pieces = ["[UNK]", *string.printable, *(f"##{one}" for one in string.printable), "hello", "##ello", "world"]
    found = Tokenizer(models.WordPiece({piece: n for n, piece in enumerate(pieces)}, unk_token="[UNK]"))
    found.normalizer = normalizer
    found.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    found.add_tokens(added)
    found.post_processor = processors.BertProcessing(("[cls]", found.token_to_id("[cls]") or 0), ("[MASK]", 1))
    return found


@pytest.mark.parametrize("kind", NORMALIZERS)
@given(texts=st.lists(TEXTS, max_size=5))
@example(texts=["Hello\tWorld", "Hell\x00o", "[M\x01ASK]", "", "naïve", "東京 hello"])
@settings(max_examples=100, deadline=None)
def test_the_tokens_are_equal(kind: str, texts: list[str]) -> None:
    whole = tokenizer(NORMALIZERS[kind]())
    found = encode_batch(whole, AsciiTexts.of(tokenizer(NORMALIZERS[kind]())), texts)
    assert [one.ids for one in found] == [whole.encode(text).ids for text in texts]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has priorities of threads")
def test_the_pool_has_a_low_priority() -> None:
    """In a process of its own: there is one pool, which may have been started. Other tests may have forbidden it."""
    code = (
        "import os; from workers.models.huggingface.ascii_texts import POOL_NICENESS, start_pool;"
        "before = {*os.listdir('/proc/self/task')}; start_pool(); start_pool();"
        "pool = {*os.listdir('/proc/self/task')} - before;"
        "own = os.getpriority(os.PRIO_PROCESS, 0); assert pool;"
        "assert {os.getpriority(os.PRIO_PROCESS, int(one)) for one in pool} == {min(own + POOL_NICENESS, 19)}"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_plain_texts_take_the_short_way_and_others_do_not() -> None:
    short = AsciiTexts.of(tokenizer(NORMALIZERS["uncased"]()))
    assert short is not None
    assert short.tokenizer.normalizer is None
    assert short.normalized("A Fine\tFilm\x00.") == "a fine film."
    assert [short.normalized(text) for text in ("naïve", "a [MASK]", "in a CAFE", "a\tb")] == [None] * 4


def test_an_added_token_of_removed_characters_alone_is_not_looked_for() -> None:
    assert AsciiTexts.of(tokenizer(NORMALIZERS["uncased"](), [AddedToken("\x01", normalized=False)])) is None


@pytest.mark.parametrize(
    "normalizer",
    [normalizers.Strip(), normalizers.Sequence([normalizers.BertNormalizer(), normalizers.Replace("aa", "b")]), None],
)
def test_normalizers_that_see_more_than_a_character_stay(normalizer: normalizers.Normalizer | None) -> None:
    one = tokenizer(NORMALIZERS["uncased"]())
    one.normalizer = normalizer
    assert AsciiTexts.of(one) is None
    assert encode_batch(one, None, [" aa "])[0].ids == one.encode(" aa ").ids


def test_other_pre_tokenizers_stay() -> None:
    """Metaspace treats the first character of a text in another way, and the normalizer may remove that one."""
    one = tokenizer(NORMALIZERS["uncased"]())
    one.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    assert AsciiTexts.of(one) is None
