"""A nightly pipeline: a Parquet file in, the same rows with their results out.

    python -m examples.nightly_pipeline reviews.parquet rated.parquet --task sentiment --task topic --id-column id

A row that is bad goes to OUT.errors.jsonl, and stands in the output with its error. Whatever interrupts it, the next
run with the same file goes on where this one stopped: `idempotency_key` is made of the file's name, size and time. The
fleet is found as by the `argosy` command, and while it is full, `submit_many` waits.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from producers import Client, Rejected
from producers.client.request import Request
from producers.joining import write_joined
from producers.sources import Source

WEEK_S = 7 * 86400


def main(arguments: list[str] | None = None) -> int:
    told = options(arguments)
    errors = told.output.with_name(f"{told.output.name}.errors.jsonl")
    with Client() as client, errors.open("w", encoding="utf-8") as bad:
        source = Source(
            told.source,
            client.catalogue.task(told.task[0]).kind.modality,
            client.catalogue.limits,
            input_column=told.input_column,
            key_column=told.id_column,
        )

        def put_aside(row: Rejected) -> None:
            bad.write(json.dumps({"row": row.seq + 1, "id": row.key, "error": str(row.error)}) + "\n")

        fingerprint = source.fingerprint()
        job = client.submit_many(
            told.task,
            source.rows(),
            name=f"nightly {told.source.name}",
            idempotency_key=f"nightly {fingerprint} {' '.join(told.task)}",
            ttl_s=WEEK_S,
            on_error="skip",
            on_rejected=put_aside,
        )
        status = job.wait()
        request = Request.check(client.catalogue, told.task, priority="bulk")
        rows = write_joined(source, request, job.results(), told.output, fingerprint=fingerprint)
    print(
        f"{rows:,} rows, {job.rejected_count:,} of them bad; {status.succeeded:,} of {status.total:,} results succeeded"
    )
    return 0 if status.succeeded == status.total else 1


def options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--task", action="append", required=True)
    parser.add_argument("--input-column")
    parser.add_argument("--id-column")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
