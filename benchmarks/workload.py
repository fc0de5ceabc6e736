"""The one workload that every text benchmark and the demo use: real texts of mixed length."""

from __future__ import annotations

from random import Random

from workers.models.sources import model_source
from workers.training import data

#: Words of a news article that make a long text: some 170 tokens, so that the average of the mix is about 50.
LONG_WORDS = 130


def mixed_texts(count: int, *, seed: int = 0) -> list[str]:
    """Return `count` distinct real texts in random order: 80 % short sentences with an opinion, 20 % news articles'
    beginnings.

    The data are pulled into the user's cache if they are not there. The same `seed` gives the same texts.
    """
    cache = model_source.cache_folder()
    short = [example.text for example in data.read("sentiment", cache)]
    long = [" ".join(example.text.split()[:LONG_WORDS]) for example in data.read("topic", cache)]
    number_long = count // 5
    if number_long > len(long) or count - number_long > len(short):
        raise ValueError(f"at most {min(5 * len(long), len(short) * 5 // 4):,} distinct texts, not {count:,}")
    random = Random(seed)
    texts = random.sample(short, count - number_long) + random.sample(long, number_long)
    random.shuffle(texts)
    return texts
