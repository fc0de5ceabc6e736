"""The scripted model as a user's own class that `argosy doctor` can try: it has samples."""

from __future__ import annotations

from tests.scripted_model import ScriptedModel
from workers.models.interface.sample_inputs import Item


class Own(ScriptedModel):
    def samples(self, count: int) -> list[Item]:
        params = {name: task.kind.params() for name, task in self.spec.tasks.items()}
        return [(f"sample {n}", params) for n in range(count)]
