"""A producer of both versions: ``python bulk.py LEDGER ITEMS`` submits jobs of 500 texts. The ledger has a line for each."""

import json
import sys
from pathlib import Path

from producers import Client

ledger, items = Path(sys.argv[1]), int(sys.argv[2])

with Client() as client, ledger.open("a", encoding="utf-8") as accepted:
    for first in range(0, items, 500):
        texts = [f"{ledger.stem} {number}" for number in range(first, min(first + 500, items))]
        job = client.submit_many("checksum", texts, idempotency_key=f"{ledger.stem}-{first}", priority="bulk")
        accepted.write(json.dumps([job.id, texts]) + "\n")
        accepted.flush()
