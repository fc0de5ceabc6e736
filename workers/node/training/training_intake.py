"""The intake of a node that takes trainings: their lists come last, and only while the node has nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from producers.wire.queues import model_of
from producers.wire.training.training_job import TRAINING
from workers.node.intake import ChosenLists, Intake, Listed, Lists


class TrainingIntake:
    """Chooses among all `others` as their own intake does, and adds the lists of trainings if the node `may_train`.

    Redis pops from the first list that has a message, so a training is taken only if all other lists of this node are
    empty. It comes alone, and to a consumer without an unacknowledged message: the slot's thread may not have begun
    with that message yet, so only the consumer knows. A list of trainings that is left out is asked for at the next
    poll, within a second.
    """

    def __init__(self, others: Intake, may_train: Callable[[bool], bool]) -> None:
        self._others = others
        self._may_train = may_train

    def choose(self, lists: Sequence[Listed], of: Lists) -> ChosenLists:
        """Return the lists to take the next envelope from."""
        trainings = [listed for listed in lists if model_of(listed[0]) == TRAINING]
        chosen = self._others.choose([listed for listed in lists if listed not in trainings], of)
        if not trainings or not self._may_train(of.held().total() > 0) or chosen.newest:
            return chosen
        return chosen._replace(last=trainings, several=False)
