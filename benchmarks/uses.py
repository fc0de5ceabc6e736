"""How good are the uses that docs/recipes shows, on data that nothing was trained on?

Retrieval: BBC headlines and their articles, of which the headlines were cut off, beside BM25; and the questions of
examples/handbook_questions.jsonl, which we wrote ourselves. Answers, intents, recommendations, risks: as the recipes
make them. All through a fleet; nothing here is about speed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import numpy as np

from benchmarks import convention
from benchmarks.word_search import WordSearch
from producers import Client, Pipeline
from producers.documents import Document, cite, passages, read_documents, write_index
from producers.wire.catalogue import Catalogue
from workers import settings
from workers.models.sources import model_source
from workers.training import data, train_tabular

EXAMPLES = Path(__file__).parents[1] / "examples"
LEAST_COSINE, PIECES = 0.38, 40  # of docs/recipes/answers.md
PROMPT = "{texts}\n\nUsing only the text above, answer in one short sentence: {input}"
INTENTS = {  # labels as in docs/recipes/answers.md, by page
    "returns": "returns and refunds",
    "delivery": "delivery and shipping",
    "payment": "payment and gift cards",
    "warranty": "warranty and repairs",
    "account": "account and password",
    "shop": "the shop and its opening hours",
    "rental": "renting gear",
    "club": "club membership and points",
    "courses": "courses",
    "care": "washing and care of gear",
}

FLEET = """
[worker]
models = {models}
tune_at_start = {tune}
[models.text.tasks]
handbook = "passage-retrieval"
news = "passage-retrieval"
intent = "zero-shot-classification"
[models.text.options.indexes]
handbook = "{folder}/handbook"
news = "{folder}/news"
[models.chat.tasks]
chat = "text-generation"
"""

Figures = dict[str, float]


class Uses:
    """A fleet's client, and the folder of its indexes."""

    def __init__(self, client: Client, folder: Path) -> None:
        self.client = client
        self.folder = folder
        lines = (EXAMPLES / "handbook_questions.jsonl").read_text(encoding="utf-8").splitlines()
        self.questions: list[dict[str, Any]] = [msgspec.json.decode(line) for line in lines]
        self.answered = [one for one in self.questions if one["document"]]

    def ask(self, task: str | Sequence[str], inputs: Sequence[object], **params: Any) -> list[Any]:
        """Return a task's outputs, vectors as arrays."""
        job = self.client.submit_many(task, inputs, params=params)
        job.wait(timeout_s=3600)
        rows = list(job.results())
        if failed := next((row for row in rows if row.error), None):
            raise RuntimeError(f"{task}: {failed.error}")
        return [row.output if row.vector is None else np.frombuffer(row.vector, "<f4") for row in rows]

    # --- passages ---

    def news(self) -> Figures:
        """Is a headline's own article found, among the passages of all?"""
        articles = Random(0).sample(data.read("topic", model_source.cache_folder()), 500)
        parts = [article.text.partition("\n") for article in articles]
        documents = [Document(str(number), body) for number, (_, _, body) in enumerate(parts) if body.strip()]
        headlines = {str(number): head for number, (head, _, body) in enumerate(parts) if body.strip()}
        write_index(self.client, documents, self.folder / "news")
        found = self.ask("news", list(headlines.values()), top_k=5)
        cut = [(one.name, passage.text) for one in documents for passage in passages(one)]
        words = WordSearch([text for _, text in cut])
        by_words = [[cut[place][0] for place in words.best(head, 5)] for head in headlines.values()]
        by_meaning = [[passage["document"] for passage in own] for own in found]
        return {
            "news_passages": len(cut),
            **_recalls("news", by_meaning, list(headlines)),
            **_recalls("news_bm25", by_words, list(headlines)),
        }

    def handbook(self) -> Figures:
        """Is the right page found for a question, and nothing for what the handbook does not say?"""
        pages = list(read_documents([EXAMPLES / "handbook"]))
        write_index(self.client, pages, self.folder / "handbook", pieces=PIECES)
        found = self.ask("handbook", [one["question"] for one in self.questions], top_k=3, min_score=LEAST_COSINE)
        right = [own for own, one in zip(found, self.questions, strict=True) if one["document"]]
        none = [own for own, one in zip(found, self.questions, strict=True) if not one["document"]]
        documents = [one["document"] for one in self.answered]
        cut = [(page.name, passage.text) for page in pages for passage in passages(page, pieces=PIECES)]
        words = WordSearch([text for _, text in cut])
        by_words = [[cut[place][0] for place in words.best(one["question"], 3)] for one in self.answered]
        return {
            **_recalls("handbook", [[passage["document"] for passage in own] for own in right], documents),
            **_recalls("handbook_bm25", by_words, documents),
            "handbook_quotes_right": _mean(
                any(word in own[0]["text"].lower() for word in one["answer"]) if own else False
                for own, one in zip(right, self.answered, strict=True)
            ),
            "handbook_looked_up": _mean(map(bool, right)),
            "handbook_refused": _mean(not own for own in none),
        }

    # --- dialogue ---

    def intents(self) -> Figures:
        """What is a question about: by labels alone, and by the page of the nearest passage."""
        labels = list(INTENTS.values())
        asked = [one["question"] for one in self.answered]
        wanted = [INTENTS[one["document"].removesuffix(".md")] for one in self.answered]
        found = self.ask("intent", asked, candidate_labels=labels, hypothesis_template="{}")
        return {
            "intents_right": _mean(own[0]["label"] == label for own, label in zip(found, wanted, strict=True)),
            "intents_most_frequent": max(map(wanted.count, labels)) / len(wanted),
        }

    def answers(self) -> Figures:
        """Does the answer have the words that it must have, and is a wrong one marked as not in the documents?"""
        steps = Pipeline().step("passages", task="handbook", params={"top_k": 2, "min_score": LEAST_COSINE})
        steps.step(
            "answer",
            task="chat",
            of="passages",
            take="prompt",
            options={"template": PROMPT},
            params={"max_new_tokens": 32},
        )
        job = self.client.submit_pipeline(steps, [one["question"] for one in self.answered])
        job.wait(timeout_s=3600)
        right, marked = [], []
        for tree, one in zip(job.results(), self.answered, strict=True):
            for answer in tree.outputs("answer"):
                said = answer["text"].lower()
                right.append(any(word in said for word in one["answer"]))
                marked.append(any(sentence.passage is None for sentence in cite(said, tree.outputs("passages")[0])))
        pairs = list(zip(right, marked, strict=True))
        return {
            "answers": len(right),
            "answers_right": _mean(right),
            "wrong_answers_marked": _mean(mark for good, mark in pairs if not good),
            "right_answers_marked": _mean(mark for good, mark in pairs if good),
        }

    # --- items ---

    def recommendation(self) -> Figures:
        """Are articles recommended that are of the topic of those that were read?"""
        articles = Random(1).sample(data.read("topic", model_source.cache_folder()), 1000)
        vectors = np.array(self.ask("embedding", [article.text[:1000] for article in articles]))
        topics = np.array([article.label for article in articles])
        random, hits = Random(0), []
        for _ in range(2000):
            topic = random.choice(topics)
            read = random.sample(list(np.flatnonzero(topics == topic)), 4)
            likeness = vectors[read].mean(axis=0) @ vectors.T
            likeness[read] = -np.inf
            hits.append((topics[np.argsort(-likeness)[:5]] == topic).mean())
        shares = [(topics == topic).mean() for topic in set(topics)]
        return {"recommended_of_topic": _mean(hits), "at_random_of_topic": float(np.square(shares).sum())}

    def spam(self) -> Figures:
        """What is the score of the head `spam` worth as a probability, on mails that it has not seen?"""
        from sklearn.metrics import roc_auc_score

        mails = data.split(data.read("spam", model_source.cache_folder()), seed=data.SEED).test
        found = self.ask("spam", [mail.text for mail in mails], top_k=2, truncation=True)
        scores = np.array([next(one["score"] for one in own if one["label"] == "spam") for own in found])
        spam = np.array([mail.label == "spam" for mail in mails])
        return {
            "spam_auc": float(roc_auc_score(spam, scores)),
            "spam_brier": 2 * float(np.square(scores - spam).mean()),
            "spam_brier_of_shares": 2 * float(np.square(spam.mean() - spam).mean()),
            "spam_calibration_error": train_tabular.calibration_error(
                np.maximum(scores, 1 - scores), (scores > 0.5) == spam
            ),
        }

    def tables(self) -> Figures:
        """Biopsies and pages, held out eight times over, with and without the calibration."""
        figures: Figures = {}
        for name, make in train_tabular.TABLES.items():
            table = make()
            judged = [train_tabular.judge(table, seed) for seed in range(8)]
            for figure in ("accuracy", "majority", "auc", "brier", "brier_of_shares", "calibration_error"):
                figures[f"{name}_{figure}"] = _mean(getattr(score, figure) for score, _ in judged)
            for figure in ("accuracy", "auc"):
                figures[f"{name}_{figure}_deviation"] = float(np.std([getattr(score, figure) for score, _ in judged]))
            figures[f"{name}_calibration_error_before"] = _mean(raw.calibration_error for _, raw in judged)
        return figures


def _recalls(name: str, found: Sequence[Sequence[str]], wanted: Sequence[str]) -> Figures:
    pairs = list(zip(found, wanted, strict=True))
    return {
        f"{name}_found_first": _mean(own[:1] == [one] for own, one in pairs),
        f"{name}_found": _mean(one in own for own, one in pairs),
    }


def _mean(values: Any) -> float:
    found = [float(value) for value in values]
    return sum(found) / len(found) if found else 0.0


PARTS: Mapping[str, Callable[[Uses], Figures]] = {
    "handbook": Uses.handbook,
    "intents": Uses.intents,
    "tables": Uses.tables,
    "news": Uses.news,
    "recommendation": Uses.recommendation,
    "spam": Uses.spam,
    "answers": Uses.answers,
}


@contextmanager
def uses(parts: Sequence[str], *, tune: bool) -> Iterator[Uses]:
    with tempfile.TemporaryDirectory(prefix="argosy-uses-") as folder:
        file = Path(folder) / "fleet.toml"
        models = ["text", "chat"] if "answers" in parts else ["text"]
        file.write_text(FLEET.format(models=models, folder=folder, tune=str(tune).lower()), encoding="utf-8")
        with (
            convention.fleet(settings.load(file), config=file) as fleet,
            Client(fleet.broker_url, fleet.store_url, catalogue=Catalogue.from_toml(file)) as client,
        ):
            yield Uses(client, Path(folder))


def main() -> None:
    parser = convention.parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), help="these parts only; answers need the handbook")
    given = parser.parse_args()
    parts = given.only or (["handbook", "intents"] if given.quick else list(PARTS))
    figures: Figures = {}
    with uses(parts, tune=not given.quick) as fleet:
        for part in parts:
            convention.progress(part)
            figures |= {name: round(value, 4) for name, value in PARTS[part](fleet).items()}
    convention.report("uses", figures, keep=given.keep and not given.only)


if __name__ == "__main__":
    main()
