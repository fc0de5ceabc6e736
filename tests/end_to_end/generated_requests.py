"""Requests that schemathesis makes of the gateway's own OpenAPI: right by the schema, and wrong by it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode

#: Generated of each operation; some hundreds of each were tried when this was written.
EXAMPLES = {GenerationMode.POSITIVE: 2, GenerationMode.NEGATIVE: 3}


@schemathesis.serializer("application/jsonl")
def _lines(_: object, value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "replace")


def answers(url: str, key: str) -> Iterator[tuple[str, Counter[int]]]:
    """Make requests of every operation; yield each with how often it was answered with which status."""
    with requests.Session() as session:
        schema = schemathesis.openapi.from_dict(session.get(f"{url}/openapi.json", timeout=30).json())
        for found in schema.get_all_operations():
            operation = found.ok()
            for mode, count in EXAMPLES.items():
                yield operation.label, tried(operation, mode, count, url, f"Bearer {key}", session)
            if operation.path == "/api/pause":  # or what other operations ask for would wait, or be refused
                resume_all(url, f"Bearer {key}", session)


def resume_all(url: str, key: str, session: requests.Session) -> None:
    """End the pauses that generated requests have made."""
    for pause in session.get(f"{url}/api/pauses", headers={"Authorization": key}, timeout=30).json()["pauses"]:
        body = {"kind": pause["kind"], "name": pause["name"]}
        session.post(f"{url}/api/resume", json=body, headers={"Authorization": key}, timeout=30).raise_for_status()


def tried(
    operation: Any, mode: GenerationMode, count: int, url: str, key: str, session: requests.Session
) -> Counter[int]:
    """Make requests of one operation and count what they were answered with."""
    seen: Counter[int] = Counter()

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def once(case: schemathesis.Case) -> None:
        sent = case.as_transport_kwargs(base_url=url)
        sent["headers"]["Authorization"] = key  # what is generated for it would only be refused
        answer = session.request(**sent, timeout=30)
        assert answer.status_code < 500, (case.as_curl_command(), answer.text)
        seen[answer.status_code] += 1

    with suppress(Unsatisfiable):  # nothing can be wrong with a request that has no parameters
        once()
    return seen
