"""The kinds that a recipe may name."""

from __future__ import annotations

from collections.abc import Mapping

from workers.training.kinds import label_kinds, pair_kinds, span_kinds, written_kinds
from workers.training.kinds.labelled_kind import LabelledKind

TRAINED: Mapping[str, type[LabelledKind]] = {
    "classification": label_kinds.ClassificationKind,
    "multi-label": label_kinds.MultiLabelKind,
    "regression": label_kinds.RegressionKind,
    "token-labels": span_kinds.TokenLabelKind,
    "answers": span_kinds.AnswerKind,
    "similarity": pair_kinds.SimilarityKind,
    "ranking": pair_kinds.RankingKind,
    "text-to-text": written_kinds.TextToTextKind,
    "dialogue": written_kinds.DialogueKind,
}
