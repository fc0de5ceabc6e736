"""A Celery result backend on the store, for users' own Celery code: ``result_backend="argosy+sqlite:///path"``.

Also ``argosy+postgresql://…``. States and results are stored as JSON; the writes of several threads share a
transaction. The worker that returns a chord's last part sends its body; a counter in the database decides which worker
this is, without polling. `argosy migrate` makes the tables.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any
from weakref import WeakValueDictionary

from celery import states
from celery.backends.base import BaseBackend
from celery.canvas import maybe_signature
from celery.exceptions import ChordError, ImproperlyConfigured
from celery.exceptions import TimeoutError as CeleryTimeoutError
from celery.result import GroupResult, allow_join_result, result_from_tuple
from celery.utils.functional import _regen
from celery.utils.time import maybe_timedelta
from kombu.exceptions import EncodeError
from kombu.utils.encoding import safe_repr

from results_store.celery_results import transactions
from results_store.celery_results.celery_rows import ChordPart, TaskRow
from results_store.celery_results.transactions import CeleryResults
from results_store.errors import StoreUnavailable

logger = logging.getLogger(__name__)

Meta = dict[str, Any]

#: Seconds until the first look for a result. Later looks are further and further apart, up to Celery's `interval`.
FIRST_LOOK_S = 0.01

_EXTENDED = ("name", "args", "kwargs", "worker", "retries", "queue", "stamped_headers")


class ArgosyBackend(BaseBackend):  # type: ignore[misc] # Celery is untyped
    """The backend described in the module's docstring.

    It follows these Celery settings: `result_expires`, `result_chord_expires`, `result_chord_join_timeout`,
    `result_extended`, `result_backend_always_retry` (default here: yes) and `result_backend_max_retries` (default here:
    20, about two minutes with Celery's growing pauses).
    """

    supports_native_join = True

    def __init__(self, app: Any, url: str | None = None, **options: Any) -> None:
        super().__init__(app, url=url, expires_type=maybe_timedelta, accept=["json"], **options)
        if not url:
            raise ImproperlyConfigured(
                "result_backend: write argosy+sqlite:///path or argosy+postgresql://user@host/name"
            )
        if self.serializer != "json":
            raise ImproperlyConfigured(
                f"result_serializer: the Argosy backend stores JSON only, not {self.serializer}; set it to 'json'"
            )
        self.url = url
        # while `on_interval` runs: the states of the last look, and the other tasks whose states it asks for
        self._looked_up: Mapping[str, Meta] = {}
        self._asked: set[str] | None = None
        # by group id; Celery holds a header while it sends its tasks
        self._lazy_headers: WeakValueDictionary[str, _regen] = WeakValueDictionary()
        if not app.conf.value_set_for("result_backend_always_retry"):
            self.always_retry = True
        if not app.conf.value_set_for("result_backend_max_retries"):
            self.max_retries = 20

    def exception_safe_to_retry(self, exc: BaseException) -> bool:
        return isinstance(exc, StoreUnavailable)

    @property
    def _results(self) -> CeleryResults:
        return transactions.shared(self.url)

    # --- tasks ---

    def _store_result(
        self, task_id: str, result: Any, state: str, traceback: str | None = None, request: Any = None, **_: Any
    ) -> Any:
        meta = self._get_result_meta(result, state, traceback, request, format_date=False)
        done = meta["date_done"]
        row = TaskRow(
            id=task_id,
            state=state,
            result=self.encode(result),
            traceback=None if traceback is None else str(traceback),
            children=self.encode(meta["children"]) if meta["children"] else None,
            done_at=None if done is None else done.timestamp(),
            group_id=meta.get("group_id"),
            parent_id=meta.get("parent_id"),
            extended=self._encode_extended(meta),
        )
        self._results.store(row)
        return result

    def _encode_extended(self, meta: Meta) -> str | None:
        if "name" not in meta:
            return None
        stamps = meta.get("stamped_headers") or ()
        extended = {name: meta[name] for name in (*_EXTENDED, *stamps) if name in meta}
        try:
            return str(self.encode(extended))
        except EncodeError:  # arguments for another serializer, which this backend does not need
            shown = {name: safe_repr(extended.get(name)) for name in ("args", "kwargs")}
            return str(self.encode({**extended, **shown}))

    def _get_task_meta_for(self, task_id: str) -> Meta:
        if task_id in self._looked_up:
            return self._looked_up[task_id]
        if self._asked is not None:
            self._asked.add(task_id)
        found = self._results.tasks([task_id])
        return self._meta(found[0]) if found else _pending(task_id)

    def _meta(self, row: TaskRow) -> Meta:
        meta = {
            "task_id": row.id,
            "status": row.state,
            "result": self.decode(row.result),
            "traceback": row.traceback,
            "children": self.decode(row.children),
            "date_done": None if row.done_at is None else datetime.fromtimestamp(row.done_at, UTC).isoformat(),
            "group_id": row.group_id,
            "parent_id": row.parent_id,
            **(self.decode(row.extended) or {}),
        }
        decoded: Meta = self.meta_from_decoded(meta)
        return decoded

    def _forget(self, task_id: str) -> None:
        self._results.forget(task_id)

    def task_result_exists(self, task_id: str) -> bool:
        return bool(self._ensure_retryable(self._results.tasks, [task_id]))

    # --- waiting ---

    def wait_for(
        self,
        task_id: str,
        timeout: float | None = None,
        interval: float = 0.5,
        no_ack: bool = True,
        on_interval: Callable[[], object] | None = None,
    ) -> Meta:
        """Wait for a task and return its state. Raises celery.exceptions.TimeoutError."""
        for _, meta in self.get_many([task_id], timeout=timeout, interval=interval, on_interval=on_interval):
            return meta
        raise CeleryTimeoutError("The operation timed out.")

    def get_many(
        self,
        task_ids: Collection[str],
        timeout: float | None = None,
        interval: float | None = 0.5,
        no_ack: bool = True,
        on_message: Callable[[Meta], object] | None = None,
        on_interval: Callable[[], object] | None = None,
        max_iterations: int | None = None,
    ) -> Iterator[tuple[str, Meta]]:
        """Yield (id, state) as tasks become ready. Each look is a single query for all missing tasks.

        `on_interval` is called at each look before its states are yielded: it raises the error of a task's parent,
        which goes before the task's own. The parents that it asked for are part of the next look's query.
        """
        self._ensure_not_eager()
        waiting = set(task_ids)
        until = None if timeout is None else time.monotonic() + timeout
        pause_s, looks = FIRST_LOOK_S, 0
        parents: set[str] = set()
        while waiting:
            ready = self._look(waiting, parents)
            if on_interval is not None:
                parents = self._call(on_interval)
            for meta in ready:
                waiting.discard(meta["task_id"])
                if on_message is not None:
                    on_message(meta)
                yield meta["task_id"], meta
            looks += 1
            if not waiting or (max_iterations and looks >= max_iterations):
                return
            left_s = pause_s if until is None else until - time.monotonic()
            if left_s <= 0:
                raise CeleryTimeoutError(f"Operation timed out ({timeout})")
            self._sleep(min(pause_s, left_s))
            pause_s = min(pause_s * 1.5, 0.5 if interval is None else max(interval, FIRST_LOOK_S))

    def _look(self, waiting: Collection[str], parents: Collection[str]) -> list[Meta]:
        """Return the ready states of `waiting`, and keep those of `parents` for `_get_task_meta_for`."""
        cached = [self._cache[id_] for id_ in waiting if id_ in self._cache]
        missing = {*waiting, *parents} - {meta["task_id"] for meta in cached}
        rows = self._ensure_retryable(self._results.tasks, missing) if missing else []
        found = {row.id: self._meta(row) for row in rows}
        self._looked_up = {id_: found.get(id_) or _pending(id_) for id_ in parents}
        ready = [meta for id_, meta in found.items() if id_ in waiting and meta["status"] in states.READY_STATES]
        for meta in ready:
            if meta["status"] == states.SUCCESS:
                self._cache[meta["task_id"]] = meta
        return [*(meta for meta in cached if meta["status"] in states.READY_STATES), *ready]

    def _call(self, on_interval: Callable[[], object]) -> set[str]:
        """Call `on_interval` and return the tasks that it asked for and that are not ready."""
        self._asked = set()
        try:
            on_interval()
            pending = {id_ for id_, meta in self._looked_up.items() if meta["status"] not in states.READY_STATES}
            return pending | self._asked
        finally:
            self._looked_up, self._asked = {}, None

    # --- groups ---

    def _save_group(self, group_id: str, result: Any) -> Any:
        self._results.save_group(group_id, self.encode(result.as_tuple()))
        return result

    def _restore_group(self, group_id: str) -> Meta | None:
        found = self._results.group(group_id)
        if found is None:
            return None
        members, saved_at = found
        return {
            "task_id": group_id,
            "result": result_from_tuple(self.decode(members), self.app),
            "date_done": datetime.fromtimestamp(saved_at, UTC).isoformat(),
        }

    def _delete_group(self, group_id: str) -> None:
        self._results.forget_group(group_id)

    # --- chords ---

    def apply_chord(self, header_result_args: tuple[Any, ...], body: Any, **_: Any) -> None:
        """Store the header's structure if it contains groups. The parts of a plain header are enough by themselves.

        A header from a generator is not unrolled before its tasks are sent, unless it begins with a group.
        """
        self.ensure_chords_allowed()
        id_, parts = header_result_args
        if isinstance(parts, _regen) and not (parts and isinstance(parts[0], GroupResult)):
            self._lazy_headers[id_] = parts
            return
        header = self.app.GroupResult(*header_result_args)
        if any(isinstance(part, GroupResult) for part in header.results):
            self.save_group(header.id, header)

    def set_chord_size(self, group_id: str, chord_size: int) -> None:
        """Store the number of parts. The last part is not sent yet.

        Raises ValueError for a group in a lazy header: its ids are not known, so its results would come in any order.
        """
        if any(isinstance(part, GroupResult) for part in self._lazy_headers.pop(group_id, ())):
            raise ValueError("chord: a header from a generator begins with a task and contains a group; pass a list")
        self._ensure_retryable(self._results.set_chord_size, group_id, chord_size)

    def add_to_chord(self, chord_id: str, result: Any) -> None:
        self._ensure_retryable(self._results.add_to_chord, chord_id)

    def on_chord_part_return(self, request: Any, state: str, result: Any, **_: Any) -> None:
        """Count the part. If it completes the chord, send the chord's body, or report a failed header."""
        if not request.group or not request.id:
            return
        part = ChordPart(
            chord=request.group,
            task=request.id,
            position=request.group_index,
            state=state,
            result=self.encode(self.encode_result(result, state)),
            size=request.chord.get("chord_size"),
        )
        if self._ensure_retryable(self._results.return_part, part):
            self._send_body(part.chord, maybe_signature(request.chord, app=self.app))

    def _send_body(self, chord: str, body: Any) -> None:
        try:
            self.app.amqp._retry_publish(body.delay, self._header_results(chord))  # noqa: SLF001 - as in Celery
        except Exception as error:  # noqa: BLE001 - whatever the error, the body's result must report it
            logger.warning("chord %s: its body does not run: %r", chord, error)
            if not isinstance(error, ChordError):
                error = _chord_error(f"Callback error: {error!r}", error)
            self.chord_error_from_stack(body, error)
        self._ensure_retryable(self._results.finish_chord, chord)

    def _header_results(self, chord: str) -> list[Any]:
        """Return the results of the header, in its order and structure. Raises ChordError if a part failed."""
        plain = [self._unpacked(*part) for part in self._ensure_retryable(self._results.chord_parts, chord)]
        structured = self.restore_group(chord, cache=False)
        if structured is None:
            return plain
        with allow_join_result():
            joined = structured.join_native(timeout=self.app.conf.result_chord_join_timeout, propagate=True)
        self.delete_group(chord)
        return list(joined)

    def _unpacked(self, task: str, state: str, result: str) -> Any:
        value = self.decode(result)
        if state in self.EXCEPTION_STATES:
            value = self.exception_to_python(value)
        if state in states.PROPAGATE_STATES:
            raise _chord_error(f"Dependency {task} raised {value!r}", value)
        return value

    # --- expiry ---

    def cleanup(self) -> None:
        """Delete rows older than `result_expires`. `celery beat` runs this once a day (``celery.backend_cleanup``)."""
        if not self.expires:
            return
        kept_s = self.expires.total_seconds()
        chords = maybe_timedelta(self.app.conf.get("result_chord_expires"))
        chords_kept_s = chords.total_seconds() if chords else kept_s
        self._ensure_retryable(self._results.clean_up, kept_s=kept_s, chords_kept_s=max(chords_kept_s, kept_s))

    def __reduce__(self, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        return super().__reduce__(args, {"url": self.url, "expires": self.expires, **(kwargs or {})})


def _pending(task_id: str) -> Meta:
    return {"task_id": task_id, "status": states.PENDING, "result": None}


def _chord_error(message: str, cause: BaseException) -> ChordError:
    error = ChordError(message)
    error.__cause__ = cause
    return error
