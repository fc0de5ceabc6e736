"""The store against a model of it in plain Python: whatever is done in whatever order, both say the same.

The model is meant to be read: each rule does to a few dictionaries what the store's method promises, and `agrees`
compares all that can be asked. Time passes only where a rule lets it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from results_store.errors import UnknownJob
from results_store.records import (
    ALL_ITEMS,
    ALONE_AFTER_DEATHS,
    Claim,
    Result,
    ResultChunk,
    ResultState,
    Transaction,
)
from results_store.sql.chunks.packed_rows import packed
from results_store.sql.database import Database, Weight
from results_store.sql.schema import metadata
from results_store.store import Store
from tests.integration.rows import new_envelope, new_job, result

MAX_ATTEMPTS = 2
LEASE_S = 10
OVERDUE_S = 5
LINE = ("text", 9, 0)
PICK = st.integers(0, 20)
SOME = st.lists(PICK, min_size=1, max_size=3)
WORKERS = st.sampled_from(["w1", "w2"])
RARELY = st.sampled_from([False, False, False, True])
CHUNKED = st.sampled_from([False, True])
STATES = st.lists(st.sampled_from([ResultState.FAILED, ResultState.SUCCEEDED, *ResultState]), min_size=9, max_size=9)
KINDS = ("ModelError", "DeviceLost")


@dataclass
class ModelJob:
    created_at: float
    ttl_s: float | None
    items: int = 0
    cancelled: bool = False
    finished_at: float | None = None
    #: item → (state, error's kind, stored at)
    results: dict[int, tuple[ResultState, str | None, float]] = field(default_factory=dict)


@dataclass
class ModelEnvelope:
    job: str
    items: tuple[int, ...]
    accepted_at: float
    late: bool
    state: str = "accepted"
    published_at: float | None = None
    attempts: int = 0
    deaths: int = 0
    suspect: int | None = None
    tries: int = 0
    worker: str | None = None
    leased_until: float | None = None
    payload: bool = True

    def held_by(self, worker: str) -> bool:
        return self.state == "published" and self.worker == worker and bool(self.leased_until)

    def unsuspected(self) -> None:
        self.suspect = None if self.suspect == ALL_ITEMS else self.suspect
        self.tries = max(0, self.tries - 1)

    @property
    def over(self) -> bool:
        return self.state in ("done", "dead")


def in_chunks(rows: list[Result]) -> tuple[list[ResultChunk], list[Result]]:
    """Return the succeeded results as chunks, one for an envelope, and the others."""
    chunks: list[ResultChunk] = []
    rest = [row for row in rows if row.state is not ResultState.SUCCEEDED]
    for envelope in dict.fromkeys(row.envelope for row in rows):
        own = [row for row in rows if row.envelope == envelope and row not in rest]
        made, _ = packed(own, least=1)
        chunks += made
    return chunks, rest


class StoreMachine(RuleBasedStateMachine):
    """One store, one model, and everybody who works with them."""

    store: Store
    url: str

    @initialize()
    def empty(self) -> None:
        database = Database(self.url, timeout_s=30)
        database.open()
        with database.write(Weight.ACCEPTED) as connection:
            for each in reversed(metadata.sorted_tables):
                if each.name != "tenants":  # whose first row comes with the schema
                    connection.execute(each.delete())
        database.close()
        self.now = 1000.0
        self.jobs: dict[str, ModelJob] = {}
        self.envelopes: dict[str, ModelEnvelope] = {}
        self.all_jobs: list[str] = []
        self.all_envelopes: list[str] = []
        for _ in range(2):
            self.create_job(None)
            self.add_envelopes(len(self.all_jobs) - 1, [2, 1], False)

    # --- producers ---

    @rule(ttl_s=st.sampled_from([None, 30.0]))
    @precondition(lambda self: len(self.jobs) < 4)
    def create_job(self, ttl_s: float | None) -> None:
        job = f"job-{len(self.all_jobs)}"
        self.store.create_job(new_job(job, created_at=self.now, ttl_s=ttl_s))
        self.jobs[job] = ModelJob(self.now, ttl_s)
        self.all_jobs.append(job)

    @rule(which=PICK, sizes=st.lists(st.integers(1, 3), min_size=1, max_size=2), late=RARELY)
    @precondition(lambda self: len(self.envelopes) < 8)
    def add_envelopes(self, which: int, sizes: list[int], late: bool) -> None:
        given: dict[str, ModelEnvelope] = {}
        job = self.job(which)
        known = self.jobs.get(job)
        first = known.items if known else 0
        for size in sizes:
            items = tuple(range(first, first + size))
            given[f"e-{len(self.all_envelopes) + len(given):04}"] = ModelEnvelope(job, items, self.now, late)
            first += size
        rows = [
            new_envelope(
                id_,
                job=job,
                items=len(envelope.items),
                results=len(envelope.items),
                created_at=self.now,
                deadline_at=1.0 if late else None,
            )
            for id_, envelope in given.items()
        ]
        if known is None:
            with pytest.raises(UnknownJob):
                self.store.add_envelopes(rows)
            return
        self.store.add_envelopes(rows)
        self.envelopes |= given
        self.all_envelopes += given
        known.items, known.finished_at = first, None

    @rule(which=SOME)
    def mark_published(self, which: list[int]) -> None:
        ids = self.ids(which)
        self.store.mark_published(ids, self.now)
        for envelope in self.known(ids):
            if envelope.state == "accepted" and envelope.accepted_at > 0:  # else the mark is of an earlier message
                envelope.state, envelope.published_at = "published", self.now

    @rule(which=PICK)
    @precondition(lambda self: not any(job.cancelled for job in self.jobs.values()))
    def cancel(self, which: int) -> None:
        job = self.job(which)
        if job not in self.jobs:
            with pytest.raises(UnknownJob):
                self.store.cancel_job(job, self.now)
            return
        self.store.cancel_job(job, self.now)
        if self.jobs[job].finished_at is None:
            self.jobs[job].cancelled = True

    # --- workers ---

    @rule(which=SOME, worker=WORKERS)
    def claim(self, which: list[int], worker: str) -> None:
        ids = self.ids(which)
        found = self.store.claim(ids, worker=worker, now=self.now, lease_s=LEASE_S, max_attempts=MAX_ATTEMPTS)
        verdicts = {id_: claimed.verdict for id_, claimed in found.items()}
        assert verdicts == {id_: self.verdict(id_, worker) for id_ in ids}
        alone = {id_: (claimed.alone, claimed.one_by_one) for id_, claimed in found.items()}
        assert alone == {id_: self.runs_alone(id_, worker) for id_ in ids}
        for id_ in ids:
            envelope = self.envelopes.get(id_)
            if envelope is not None and verdicts[id_] in (Claim.WORK, Claim.CANCELLED):
                envelope.deaths += bool(envelope.leased_until)
                envelope.state, envelope.worker, envelope.leased_until = "published", worker, self.now + LEASE_S
                envelope.attempts += 1
                if envelope.published_at is None:
                    envelope.published_at = self.now

    def verdict(self, id_: str, worker: str) -> Claim:
        envelope = self.envelopes.get(id_)
        if envelope is None:
            return Claim.UNKNOWN
        if envelope.over:
            return Claim.DONE
        if envelope.leased_until is not None and self.runs(envelope.leased_until) and envelope.worker != worker:
            return Claim.HELD
        if self.jobs[envelope.job].cancelled:
            return Claim.CANCELLED
        failed_attempts = envelope.attempts - envelope.deaths - bool(envelope.leased_until)
        return Claim.WORK if failed_attempts < MAX_ATTEMPTS else Claim.DEAD

    def runs_alone(self, id_: str, worker: str) -> tuple[bool, bool]:
        if self.verdict(id_, worker) is not Claim.WORK:
            return False, False
        envelope = self.envelopes[id_]
        alone = envelope.deaths + bool(envelope.leased_until) >= ALONE_AFTER_DEATHS
        return alone, alone and envelope.suspect is not None

    @rule(
        which=SOME,
        states=STATES,
        kind=st.sampled_from(KINDS),
        how=st.sampled_from(["done", "done", "done", "dead", "partly", "short"]),
        drop_inputs=RARELY,
        chunked=CHUNKED,
    )
    def commit(
        self, which: list[int], states: list[ResultState], kind: str, how: str, drop_inputs: bool, chunked: bool
    ) -> None:
        """Also of envelopes that are over, held by nobody, or known no longer: late copies do that. A `short` commit
        leaves the last item out, and is no end unless that item has its result already. Succeeded results may come in
        chunks, which nobody can tell from what is stored.
        """
        ids, rows, chosen = self.ids(which), [], iter(states)
        for id_ in ids:
            envelope = self.envelopes.get(id_)
            for item in (envelope.items if envelope else ())[: {"partly": 1, "short": -1}.get(how)]:
                state = next(chosen)
                if how == "dead":
                    state = ResultState.FAILED
                failed = state is ResultState.FAILED
                error = {"kind": kind, "message": ""} if failed and how != "dead" else None
                output = [{"label": "sport", "score": 0.5}] if state is ResultState.SUCCEEDED else None
                own = {"state": state, "error": error, "output": output}
                rows.append(result(item, job=envelope.job if envelope else "", envelope=id_, **own))
                if envelope:
                    stored = "TooManyAttempts" if how == "dead" else kind if failed else None
                    self.jobs[envelope.job].results.setdefault(item, (state, stored, self.now))
        over = ids if how != "partly" else []
        chunks, rows = in_chunks(rows) if chunked else ([], rows)
        part = Transaction(
            results=rows,
            chunks=chunks,
            done=over if how in ("done", "short") else (),
            dead=over if how == "dead" else (),
            drop_inputs=drop_inputs,
            at=self.now,
        )
        self.store.transact(part)
        for envelope in self.known(over):
            if not envelope.over and not set(envelope.items) <= self.jobs[envelope.job].results.keys():
                envelope.leased_until = self.now if envelope.state == "published" else None
                continue
            envelope.state = envelope.state if envelope.over else "dead" if how == "dead" else "done"
            envelope.leased_until = None
            if drop_inputs and how != "dead" and not self.failed(envelope):
                envelope.payload = False
        self.settle()

    @rule(which=PICK, states=STATES, kind=st.sampled_from(KINDS), chunked=CHUNKED)
    def finish_a_job(self, which: int, states: list[ResultState], kind: str, chunked: bool) -> None:
        job = self.job(which)
        places = [place for place, id_ in enumerate(self.all_envelopes) if self.owner(id_) == job]
        for place in places:
            self.commit([place], states, kind, "done", drop_inputs=False, chunked=chunked)

    @rule(which=SOME, worker=WORKERS)
    def renew(self, which: list[int], worker: str) -> None:
        ids = self.ids(which)
        held = [envelope for envelope in self.known(ids) if envelope.held_by(worker)]
        assert self.store.renew(ids, worker=worker, lease_s=LEASE_S, now=self.now) == len(held)
        for envelope in held:
            envelope.leased_until = self.now + LEASE_S

    @rule(which=SOME, worker=WORKERS)
    def release(self, which: list[int], worker: str) -> None:
        ids = self.ids(which)
        held = [envelope for envelope in self.known(ids) if envelope.held_by(worker)]
        assert self.store.release(ids, worker=worker) == len(held)
        for envelope in held:
            envelope.worker = envelope.leased_until = None
            envelope.attempts -= 1
            envelope.unsuspected()

    @rule(which=PICK, worker=WORKERS)
    def note_failure(self, which: int, worker: str) -> None:
        (id_,) = self.ids([which])
        held = [envelope for envelope in self.known([id_]) if envelope.held_by(worker)]
        assert self.store.note_failure(id_, worker=worker, error={"message": "x"}) == bool(held)
        for envelope in held:
            envelope.leased_until = 0
            envelope.unsuspected()

    @rule(which=PICK, suspect=st.sampled_from([ALL_ITEMS, 0, 1]))
    def note_suspect(self, which: int, suspect: int) -> None:
        (id_,) = self.ids([which])
        tries = 0
        for envelope in self.known([id_]):
            tries = envelope.tries = envelope.tries + 1 if envelope.suspect == suspect else 1
            envelope.suspect = suspect
        assert self.store.note_suspect(id_, suspect) == tries

    @rule(which=PICK, worker=WORKERS)
    @precondition(lambda self: any(envelope.state == "published" for envelope in self.envelopes.values()))
    def workers_die(self, which: int, worker: str) -> None:
        """Often enough that the envelope runs alone."""
        for _ in range(ALONE_AFTER_DEATHS):
            self.claim([which], worker)
            self.now += LEASE_S + 1

    # --- the reconciler and the operator ---

    @rule(redis_is_empty=st.booleans(), limit=st.sampled_from([1, 100]))
    def take_overdue(self, redis_is_empty: bool, limit: int) -> None:
        due = {id_ for id_, envelope in self.envelopes.items() if self.overdue(envelope, redis_is_empty)}
        taken = self.store.take_overdue(
            now=self.now, overdue_s=OVERDUE_S, oldest={LINE: None} if redis_is_empty else {}, limit=limit
        )
        ids = {envelope.id for envelope in taken}
        assert ids <= due
        assert len(ids) == min(len(due), limit)
        for found in taken:
            envelope = self.envelopes[found.id]
            assert found.attempts == envelope.attempts
            envelope.state, envelope.accepted_at = "accepted", self.now
            envelope.deaths += bool(envelope.leased_until)
            envelope.published_at = envelope.leased_until = None

    def runs(self, leased_until: float) -> bool:
        """A lease that ends later than a lease that begins now was given before the clock was set back."""
        return self.now < leased_until <= self.now + LEASE_S

    def past(self, at: float) -> bool:
        return abs(self.now - at) > OVERDUE_S

    def overdue(self, envelope: ModelEnvelope, redis_is_empty: bool) -> bool:
        if envelope.state == "accepted":
            return self.past(envelope.accepted_at)
        if envelope.state != "published" or envelope.published_at is None:
            return False
        if envelope.leased_until is not None:
            return envelope.leased_until != self.now and not self.runs(envelope.leased_until)
        return redis_is_empty and self.past(envelope.published_at)

    @rule(
        which=st.none() | st.none() | PICK, kind=st.sampled_from([None, None, *KINDS]), limit=st.sampled_from([1, 100])
    )
    @precondition(lambda self: any(self.failed(envelope) for envelope in self.envelopes.values()))
    def replay(self, which: int | None, kind: str | None, limit: int) -> None:
        job = None if which is None else self.job(which)
        chosen = {
            id_: items
            for id_, envelope in sorted(self.envelopes.items())
            if envelope.over and envelope.payload and not envelope.late
            if job in (None, envelope.job) and not self.jobs[envelope.job].cancelled
            if (items := self.failed(envelope, kind))
        }
        chosen = dict(list(chosen.items())[:limit])
        done = self.store.dead_letters.replay(job=job, error_kind=kind, failed_before=1e12, limit=limit)
        assert (done.envelopes, done.results) == (len(chosen), sum(map(len, chosen.values())))
        for id_, items in chosen.items():
            old = self.envelopes[id_]
            self.envelopes[id_] = ModelEnvelope(old.job, old.items, accepted_at=0, late=False)
            owner = self.jobs[old.job]
            owner.finished_at = None
            for item in items:
                del owner.results[item]

    @rule(age_s=st.sampled_from([None, 0.0, 0.0, 20.0]), keep_results=RARELY)
    @precondition(lambda self: any(job.finished_at is not None for job in self.jobs.values()))
    def purge(self, age_s: float | None, keep_results: bool) -> None:
        self.now += 40
        before = None if age_s is None else self.now - age_s
        due = {id_ for id_, job in self.jobs.items() if self.expired(job, before)}
        gone = {id_: envelope for id_, envelope in self.envelopes.items() if envelope.job in due}
        purged = self.store.retention.purge(finished_before=before, keep_results=keep_results, now=self.now)
        assert purged.payloads == sum(envelope.payload for envelope in gone.values())
        if keep_results:
            for envelope in gone.values():
                envelope.payload = False
            return
        assert (purged.jobs, purged.envelopes) == (len(due), len(gone))
        assert purged.results == sum(len(self.jobs[id_].results) for id_ in due)
        self.envelopes = {id_: envelope for id_, envelope in self.envelopes.items() if id_ not in gone}
        self.jobs = {id_: job for id_, job in self.jobs.items() if id_ not in due}

    def expired(self, job: ModelJob, before: float | None) -> bool:
        if job.ttl_s is not None:
            return job.finished_at is not None and job.finished_at < self.now - job.ttl_s
        if before is None or job.created_at >= before:
            return False
        return not job.items or (job.finished_at is not None and job.finished_at < before)

    @rule(seconds=st.sampled_from([1, 1, 7, 7, 40, 40, -30]))
    def time_passes(self, seconds: int) -> None:
        """Sometimes the clock is set back."""
        self.now = max(self.now + seconds, 500.0)

    # --- both say the same ---

    @invariant()
    def agrees(self) -> None:
        assert {job.id for job in self.store.jobs(limit=1000)} == set(self.jobs)
        for id_, job in self.jobs.items():
            status = self.store.job(id_)
            states = [state for state, _, _ in job.results.values()]
            counted = (status.succeeded, status.failed, status.cancelled, status.expired)
            assert counted == tuple(states.count(state) for state in ResultState)
            assert (status.items, status.total, status.finished_at) == (job.items, job.items, job.finished_at)
            assert (status.cancelled_at is not None) == job.cancelled
            stored = {
                row.seq: (row.state, (row.error or {}).get("kind"), row.stored_at) for row in self.store.results(id_)
            }
            assert stored == job.results

    @invariant()
    def agrees_on_the_work(self) -> None:
        found = {depth.state.value: depth.envelopes for depth in self.store.depth()}
        states = [envelope.state for envelope in self.envelopes.values()]
        assert found == {state: states.count(state) for state in ("accepted", "published") if state in states}
        dead = {letter.id: len(letter.failures) for letter in self.store.dead_letters.newest(limit=1000)}
        assert dead == {
            id_: len(self.failed(envelope))
            for id_, envelope in self.envelopes.items()
            if envelope.state == "dead" and envelope.payload
        }

    # --- what the model knows ---

    def job(self, which: int) -> str:
        return self.all_jobs[which % len(self.all_jobs)]

    def owner(self, id_: str) -> str | None:
        return self.envelopes[id_].job if id_ in self.envelopes else None

    def ids(self, which: list[int]) -> list[str]:
        """Envelopes, also such as are gone."""
        return list(dict.fromkeys(self.all_envelopes[one % len(self.all_envelopes)] for one in which))

    def known(self, ids: list[str]) -> list[ModelEnvelope]:
        return [self.envelopes[id_] for id_ in dict.fromkeys(ids) if id_ in self.envelopes]

    def failed(self, envelope: ModelEnvelope, kind: str | None = None) -> list[int]:
        found = self.jobs[envelope.job].results
        return [
            item
            for item in envelope.items
            if item in found and found[item][0] is ResultState.FAILED and kind in (None, found[item][1])
        ]

    def settle(self) -> None:
        for job in self.jobs.values():
            if job.finished_at is None and job.items and len(job.results) >= job.items:
                job.finished_at = self.now


@pytest.mark.timeout(600)
@pytest.mark.parametrize("examples", [8, pytest.param(40, marks=pytest.mark.long)])
def test_the_store_does_what_its_model_does(store: Store, store_url: str, examples: int) -> None:
    """Jobs, claims, expiring leases, late copies, cancellation, giving up, replay and purge, in any order."""
    sqlite = store_url.startswith("sqlite")

    class Machine(StoreMachine):
        pass

    Machine.store, Machine.url = store, store_url
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples if sqlite else examples // 4,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=True,
            database=None,
            phases=[Phase.generate, Phase.shrink],
        ),
    )
