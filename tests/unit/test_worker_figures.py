"""The figures of workers become metrics, whatever version told them; and the watchdog's lag is that of its threads."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from producers.gateway.metrics.broker_look import NodeFigures
from producers.gateway.metrics.worker_metrics import worker_metrics
from results_store.loops.loop import ThreadProgress
from workers.node.watchdog import ProgressWatch


class Told:
    """A collector of what some nodes tell."""

    def __init__(self, *nodes: NodeFigures) -> None:
        self._nodes = nodes

    def collect(self) -> object:
        return worker_metrics(self._nodes)


def test_older_and_newer_workers_are_told_as_far_as_they_are_known() -> None:
    """An older one tells nothing, a newer one more than this gateway knows; neither breaks a scrape."""
    registry = CollectorRegistry(auto_describe=False)
    new = NodeFigures(name="new", figures={"slots": 64.0, "envelopes_done": 3.0, "cpu_s": 1.5, "unheard_of": 1.0})
    registry.register(Told(NodeFigures(name="old"), new))  # type: ignore[arg-type]  # it has what is used
    value = registry.get_sample_value
    assert value("argosy_worker_slots", {"worker": "new"}) == 64
    assert value("argosy_worker_envelopes_total", {"worker": "new", "outcome": "done"}) == 3
    assert value("argosy_worker_envelopes_total", {"worker": "new", "outcome": "failed"}) == 0
    assert value("argosy_worker_cpu_seconds_total", {"worker": "new"}) == 1.5
    assert value("argosy_worker_held_envelopes", {"worker": "new"}) is None, "not 0: it did not tell"
    assert value("argosy_worker_slots", {"worker": "old"}) is None


def test_the_lag_is_of_threads_that_should_turn() -> None:
    """A wait with a limit of its own is no lag, nor is a thread that has left."""
    now = [0.0]
    watch = ProgressWatch(10.0, clock=lambda: now[0])
    turning, waiting = ThreadProgress("turning"), ThreadProgress("waiting")
    waiting.note("a long step", 600.0)
    for progress in (turning, waiting):
        watch.watch(progress)
    watch.look()
    for _ in range(3):
        now[0] += 1.0
        watch.look()
    assert (watch.lag_s, watch.late_s) == (3.0, 0.0)
    turning.note()
    now[0] += 1.5
    watch.look()
    assert (watch.lag_s, watch.late_s) == (0.0, 0.5)
