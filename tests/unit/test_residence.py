"""Which models are loaded within a memory budget: the rules, and what they come to on a simulated device."""

from __future__ import annotations

import pytest

from workers.batching.planning.residence import AGED_S, AT_ONCE, TURN, Footprint, Load, Need, Residence, Unload
from workers.settings import WorkerSettings

MB = 10**6


def residence(budget_mb: int, *names: str, load_s: float = 1.0) -> Residence:
    """Models of 100 MB each in a process that takes 50 by itself."""
    made = Residence(budget_mb * MB)
    for name in names:
        made.add(name, Footprint(100 * MB, load_s))
    made.came_up(0.0, 50 * MB)
    return made


def come(made: Residence, name: str, now: float) -> None:
    """Have a model loaded as the device would."""
    assert made.next({name: Need(3, 0.0)}, (), now, now) == Load(name)
    made.came(name, 100 * MB, 1.0, made.resident_bytes + 100 * MB, now)


def test_without_a_budget_all_are_loaded_with_the_process() -> None:
    made = residence(0, "a", "b")
    assert made.at_start() == ["a", "b"]
    assert made.settled
    assert made.absent(0.0) == {}


def test_models_come_as_they_are_needed_while_there_is_room() -> None:
    made = residence(260, "a", "b", "c")
    assert made.at_start() == []
    assert made.next({}, (), 0.0, 0.0) is None, "nothing waits for any"
    come(made, "a", 1.0)
    come(made, "b", 2.0)
    assert made.absent(3.0) == {"c": 1.0}


def test_the_least_recently_used_one_goes_first() -> None:
    made = residence(260, "a", "b", "c")
    come(made, "a", 1.0)
    come(made, "b", 2.0)
    made.used("b", 3.0)
    made.used("a", 4.0)
    need = {"c": Need(3, 5.0)}
    assert made.next(need, (), 5.0, 5.0) == Unload("b")
    assert made.next(need, (), 5.0, 5.0) is None, "it must be gone first: the memory is not there yet"
    made.went("b", 150 * MB, 5.1)
    assert made.next(need, (), 5.1, 5.1) == Load("c")
    assert made.absent(5.6) == {"b": 1.0, "c": pytest.approx(0.5)}


def test_a_busy_model_ends_its_batches_and_gets_no_more() -> None:
    made = residence(160, "a", "b")
    come(made, "a", 1.0)
    need = {"b": Need(3, 2.0)}
    assert made.next(need, {"a"}, 2.0, 2.0) is None
    assert "a" in made.absent(2.0), "no new batch begins"
    assert made.next(need, (), 2.1, 2.1) == Unload("a")


@pytest.mark.parametrize(
    ("wanted", "waits", "goes_at_s"),
    [
        (Need(3, 0.0), Need(3, 0.0), 2 * TURN),  # as urgent: after a turn
        (Need(0, 0.0), Need(3, 0.0), 1.0),  # more urgent: once it has run as long as its loading took
        (Need(AT_ONCE, 0.0), Need(0, 0.0), 0.0),  # under suspicion: nothing else runs anyway
        (Need(9, 0.0), Need(3, 0.0), AGED_S),  # less urgent: when it has aged
    ],
)
def test_how_long_a_model_stays_that_something_waits_for(wanted: Need, waits: Need, goes_at_s: float) -> None:
    made = residence(160, "a", "b")
    come(made, "a", 0.0)
    needs = {"a": waits, "b": wanted}
    if goes_at_s:
        assert made.next(needs, (), goes_at_s - 0.1, goes_at_s - 0.1) is None
    assert made.next(needs, (), goes_at_s, goes_at_s) == Unload("a")


def test_a_deadline_cuts_a_turn_short() -> None:
    """It can be met if the model comes now, and not if it comes after the other's turn."""
    made = residence(160, "a", "b")
    come(made, "a", 0.0)
    needs = {"a": Need(3, 0.0), "b": Need(3, 0.0, deadline_at=4.0)}
    assert made.next(needs, (), 1.0, 1.0) == Unload("a")


def test_two_models_that_do_not_fit_together_take_turns() -> None:
    """With work for both all the time, loading takes no more than its part of the time, and neither starves."""
    made = residence(160, "a", "b")
    now, ran = 0.0, {"a": 0.0, "b": 0.0}
    needs = {"a": Need(3, 0.0), "b": Need(3, 0.0)}
    while now < 200.0:
        match made.next(needs, (), now, now):
            case Load(key):
                now += 1.0
                made.came(key, 100 * MB, 1.0, 150 * MB, now)
            case Unload(key):
                made.went(key, 50 * MB, now)
            case None:
                now += 0.1
                [key] = made.loaded
                ran[key] += 0.1
                made.used(key, now)
    assert sum(ran.values()) >= 200 * TURN / (TURN + 1)
    assert min(ran.values()) >= 0.4 * sum(ran.values())


def test_one_that_was_never_measured_is_loaded_at_the_start() -> None:
    made = Residence(300 * MB)
    made.add("a", Footprint(90 * MB, measured=False))
    made.came_up(0.0, 50 * MB)
    assert made.untried
    assert made.next({}, (), 0.0, 0.0) == Load("a")
    made.came("a", 120 * MB, 2.0, 170 * MB, 2.0)
    assert not made.untried
    assert made.measured == {"a": Footprint(120 * MB, 2.0)}


def test_one_that_is_too_large_by_itself_is_known_at_the_start() -> None:
    made = residence(140, "a")
    assert made.too_large() == "a"
    assert residence(150, "a").too_large() is None


def test_what_batches_take_is_room_that_is_not_there() -> None:
    """Two models fit until they run: one goes, and is not loaded beside the other again."""
    made = residence(260, "a", "b")
    come(made, "a", 1.0)
    come(made, "b", 2.0)
    assert made.settled
    made.resident_bytes = 290 * MB
    assert not made.settled
    assert made.next({"b": Need(3, 3.0)}, (), 3.0, 3.0) == Unload("a")
    made.went("a", 160 * MB, 3.1)
    needs = {"a": Need(3, 3.0), "b": Need(3, 3.0)}
    assert made.next(needs, (), 4.0, 4.0) is None


def test_a_retired_version_goes_when_nothing_runs_on_it() -> None:
    made = residence(0, "a", "a#1")
    made.retire("a")
    assert made.next({}, {"a"}, 1.0, 1.0) is None
    assert made.next({}, (), 2.0, 2.0) == Unload("a")
    made.went("a", 0, 2.1)
    assert made.at_start() == ["a#1"]


def test_budgets_are_sizes_with_a_unit() -> None:
    assert WorkerSettings().memory_budget_bytes == 0
    assert WorkerSettings(memory_budget="6 GB").memory_budget_bytes == 6 * 10**9
    assert WorkerSettings(memory_budget="1.5GiB").memory_budget_bytes == 3 * 2**29
    for wrong in ("6", "six GB", "6 kB", "-1 GB"):
        with pytest.raises(ValueError, match="`memory_budget` must be a size"):
            WorkerSettings(memory_budget=wrong)


def test_a_retired_version_stays_while_something_waits_for_it() -> None:
    """Its suspects are still to run: unloaded, it would be loaded for them, and unloaded again, for ever."""
    made = residence(0, "a", "a#1")
    made.retire("a")
    needs = {"a": Need(AT_ONCE, 0.0)}
    assert made.next(needs, (), 1.0, 1.0) is None
    assert made.absent(1.0) == {}
    assert made.next({}, (), 2.0, 2.0) == Unload("a")


@pytest.mark.parametrize(
    ("waits", "wanted", "first"),
    [
        (Need(3, 0.0), Need(9, 5.0), "asked"),  # whatever waits for it
        (Need(AT_ONCE, 0.0), Need(9, 5.0), "other"),  # suspects go before all others
        (Need(0, 0.0), Need(AT_ONCE, 5.0), "asked"),  # also its own
        (Need(0, 0.5), None, "asked"),  # though nothing waits for it
    ],
)
def test_a_model_that_is_asked_for_comes_before_all_but_suspects(waits: Need, wanted: Need | None, first: str) -> None:
    made = residence(1000, "other")
    made.add("asked", Footprint(100 * MB, 1.0), asked_for=True)
    needs = {"other": waits} | ({"asked": wanted} if wanted else {})
    assert made.next(needs, (), 6.0, 6.0) == Load(first)


def test_only_deaths_in_a_row_count_against_a_model_that_loads() -> None:
    """The roster gives a model up after two: its loading in between proves that it can be loaded."""
    made = residence(160, "a")
    need = {"a": Need(3, 0.0)}
    assert made.next(need, (), 1.0, 1.0) == Load("a")
    assert made.lost(2.0) == ("a", 1)
    come(made, "a", 3.0)
    assert made.lost(4.0) is None, "nothing was loading"
    assert made.next(need, (), 5.0, 5.0) == Load("a")
    assert made.lost(6.0) == ("a", 1)
    assert made.next(need, (), 7.0, 7.0) == Load("a")
    assert made.lost(8.0) == ("a", 2)


def test_a_model_that_made_room_waits_though_another_is_forgotten_meanwhile() -> None:
    """Its work is older, and it would return at once."""
    made = residence(160, "a", "b", "retired")
    come(made, "a", 0.0)
    needs = {"a": Need(3, 0.0), "b": Need(3, 1.0)}
    assert made.next(needs, (), 9.0, 9.0) == Unload("a")
    made.remove("retired")
    made.went("a", 50 * MB, 9.1)
    assert made.next(needs, (), 9.1, 9.1) == Load("b")


def test_no_other_model_is_loaded_while_suspects_wait_or_run() -> None:
    """The process may end under them, which would count against the other model, and against them if it was that."""
    made = residence(260, "a", "b")
    needs = {"a": Need(3, 0.0), "b": Need(AT_ONCE, 0.0)}
    assert made.next(needs, {"a"}, 0.0, 0.0) is None, "they run when nothing else does"
    assert made.next(needs, (), 0.0, 0.0) == Load("b")
    made.came("b", 100 * MB, 1.0, 150 * MB, 1.0)
    assert made.next(needs, (), 1.0, 1.0) is None
    assert made.next(needs, {"b"}, 1.0, 1.0) is None
    assert made.next({"a": Need(3, 0.0)}, {"b"}, 2.0, 2.0) == Load("a")


def test_suspects_of_two_models_that_do_not_fit_together_run_one_after_the_other() -> None:
    """In their order: the model of the first stays until they have run."""
    made = residence(160, "a", "b")
    needs = {"a": Need(AT_ONCE, 1.0), "b": Need(AT_ONCE, 0.0)}
    assert made.next(needs, (), 0.0, 0.0) == Load("b")
    made.came("b", 100 * MB, 1.0, 150 * MB, 1.0)
    assert made.next(needs, (), 1.0, 1.0) is None
    needs = {"a": Need(AT_ONCE, 0.0), "b": Need(3, 0.0)}
    assert made.next(needs, (), 2.0, 2.0) == Unload("b")
    made.went("b", 50 * MB, 2.0)
    assert made.next(needs, (), 2.0, 2.0) == Load("a")


def test_a_model_under_whose_loading_the_process_ended_is_loaded_alone() -> None:
    """The first time, batches ran beside it: the death may have been theirs."""
    made = residence(260, "a", "b")
    needs = {"a": Need(3, 5.0), "b": Need(3, 0.0)}
    come(made, "b", 1.0)
    assert made.next(needs, {"b"}, 1.0, 1.0) == Load("a")
    assert made.lost(2.0) == ("a", 1)
    made.came_up(2.0, 50 * MB)
    come(made, "b", 3.0)
    assert made.next(needs, {"b"}, 3.0, 3.0) is None
    assert set(made.absent(3.0)) == {"a", "b"}, "the batches end, and none begins"
    assert made.next(needs, (), 4.0, 4.0) == Load("a")
    assert made.absent(4.5) == {"a": pytest.approx(0.5), "b": pytest.approx(0.5)}
    made.came("a", 100 * MB, 1.0, 250 * MB, 5.0)
    assert made.absent(5.0) == {}


def test_a_new_version_is_loaded_beside_the_others_also_after_a_death() -> None:
    """They serve on while it is loaded."""
    made = residence(0, "a")
    made.add("a#1", Footprint(), asked_for=True)
    for death in (1, 2):
        assert made.next({}, {"a"}, 1.0, 1.0) == Load("a#1")
        assert "a" not in made.absent(1.0)
        assert made.lost(2.0) == ("a#1", death)
        made.came_up(3.0, 0)
