"""The model `language`, as a fleet.toml of three lines serves it: what it answers, and where there is nothing to
answer.
"""

# ruff: noqa: RUF001 (letters of other scripts are what it is about)
from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from producers.wire.catalogue import Catalogue
from producers.wire.errors import ConfigurationError, InvalidInput
from tests.serving import DEVICE, answered
from workers.models.built_in.multitask import head_file
from workers.models.built_in.text.language import LanguageModel
from workers.models.interface.model import ModelSpec
from workers.models.sources import model_source

CATALOGUE = Catalogue({}).with_models(
    {"language": {"tasks": {"language": "language-identification"}}}, where="fleet.toml"
)
TASK = CATALOGUE.tasks["language"]

pytestmark = pytest.mark.usefixtures("two_threads")

#: Said by hand, none of it from what was trained on.
SAID = {
    "cs": "Včera večer jsme šli do kina a pak jsme dlouho mluvili o tom filmu.",
    "da": "I går aftes gik vi i biografen, og bagefter talte vi længe om filmen.",
    "de": "Gestern Abend waren wir im Kino und haben danach lange über den Film gesprochen.",
    "el": "Χθες το βράδυ πήγαμε σινεμά και μετά μιλήσαμε πολλή ώρα για την ταινία.",
    "en": "Last night we went to the cinema and talked about the film for a long time.",
    "es": "Anoche fuimos al cine y después hablamos mucho tiempo de la película.",
    "fi": "Eilen illalla kävimme elokuvissa ja puhuimme sen jälkeen pitkään elokuvasta.",
    "fr": "Hier soir nous sommes allés au cinéma et nous avons longtemps parlé du film.",
    "he": "אתמול בערב הלכנו לקולנוע ואחר כך דיברנו הרבה זמן על הסרט.",
    "hu": "Tegnap este moziban voltunk, és utána sokáig beszélgettünk a filmről.",
    "it": "Ieri sera siamo andati al cinema e poi abbiamo parlato a lungo del film.",
    "ja": "昨日の夜、映画館に行って、そのあと長い間映画について話しました。",
    "ko": "어젯밤에 우리는 영화관에 가서 영화에 대해 오래 이야기했습니다.",
    "nl": "Gisteravond gingen we naar de bioscoop en daarna praatten we lang over de film.",
    "pl": "Wczoraj wieczorem poszliśmy do kina, a potem długo rozmawialiśmy o filmie.",
    "pt": "Ontem à noite fomos ao cinema e depois falamos muito tempo sobre o filme.",
    "ru": "Вчера вечером мы ходили в кино, а потом долго говорили о фильме.",
    "sv": "I går kväll gick vi på bio och sedan pratade vi länge om filmen.",
    "tr": "Dün akşam sinemaya gittik ve sonra uzun süre film hakkında konuştuk.",
    "uk": "Учора ввечері ми ходили в кіно, а потім довго говорили про фільм.",
    "zh": "昨天晚上我们去看了电影，然后聊了很久。",
}  # fmt: skip


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    pulled = model_source.pull(model_source.BundledSource("language"), Path("unused"))
    loaded = LanguageModel(ModelSpec("language", pulled.folder, pulled.revision, CATALOGUE.tasks))
    assert loaded.revision
    loaded.load(DEVICE)
    return loaded


def ask(model: LanguageModel, texts: list[str], **chosen: Any) -> list[list[dict[str, Any]]]:
    own = {"language": CATALOGUE.check_params(TASK, chosen, field="params")}
    return [one["language"] for one in answered(model, [(text, own) for text in texts])]


def test_everyday_sentences_are_told_apart(model: LanguageModel) -> None:
    found = [best["label"] for [best] in ask(model, list(SAID.values()))]
    assert found == list(SAID)


def test_alone_and_among_others_the_scores_are_the_same(model: LanguageModel) -> None:
    texts = [*SAID.values(), "\U0001f600", "12,5", "ja"]
    alone = [ask(model, [text], top_k=None)[0] for text in texts]
    order = Random(0).sample(range(len(texts)), len(texts))
    for place, own in zip(order, ask(model, [texts[place] for place in order], top_k=None), strict=True):
        assert [one["label"] for one in own] == [one["label"] for one in alone[place]]
        np.testing.assert_allclose([one["score"] for one in own], [one["score"] for one in alone[place]], atol=1e-6)


@pytest.mark.parametrize(
    "text", ["\U0001f600\U0001f389\U0001f44d", "12 345.67", "?! …", "\u200b\u200d", "https://example.org"]
)
def test_what_is_in_no_language_is_undetermined(model: LanguageModel, text: str) -> None:
    """Also beside others, first and last in a batch."""
    expected = [{"label": "und", "score": 1.0}]
    assert ask(model, [text], top_k=3) == [expected]
    first, second, third = ask(model, [text, SAID["de"], text])
    assert (first, third) == (expected, expected)
    assert second[0]["label"] == "de"


def test_of_two_languages_both_are_named_the_larger_part_first(model: LanguageModel) -> None:
    [both] = ask(model, [f"{SAID['de']} {SAID['de']} {SAID['ja']}"], top_k=3)
    assert both[0]["label"] == "de"
    assert "ja" in {one["label"] for one in both}


def test_scores_of_all_labels_add_up(model: LanguageModel) -> None:
    [every] = ask(model, [SAID["it"]], top_k=None)
    assert sorted(one["label"] for one in every) == sorted(model.labels)
    assert sum(one["score"] for one in every) == pytest.approx(1, abs=1e-4)


def test_bytes_are_refused(model: LanguageModel) -> None:
    with pytest.raises(InvalidInput, match="must be text"):
        model.prepare(b"text", {"language": TASK.kind.params()})


def test_a_head_of_another_kind_is_refused(tmp_path: Path) -> None:
    import torch

    head_file.save_tensors({"out": torch.zeros(2, 2)}, tmp_path / head_file.FILE, kind="layers", labels=("a", "b"))
    wrong = LanguageModel(ModelSpec("language", tmp_path, "1", CATALOGUE.tasks))
    with pytest.raises(ConfigurationError, match="is of kind 'layers', not 'languages'"):
        _ = wrong.revision
