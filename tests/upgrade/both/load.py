"""A producer of both versions: ``python load.py LEDGER STOP`` submits jobs, and asks single questions, until the file
STOP is there. The ledger has a line for each accepted job. The first job keeps the fleet busy for a while.
"""

import json
import sys
import time
import zlib
from pathlib import Path

from producers import Client

ledger, stop = map(Path, sys.argv[1:])
name = ledger.stem

with Client() as client, ledger.open("a", encoding="utf-8") as accepted:
    number = 0
    while not stop.exists():
        texts = [f"{name} {number} {n}" for n in range(100 if number else 3000)]
        job = client.submit_many("checksum", texts, idempotency_key=f"{name}-{number}", priority="bulk")
        accepted.write(json.dumps([job.id, texts]) + "\n")
        accepted.flush()
        question = f"{name} asks {number}"
        answer = client.submit("checksum", question, priority="interactive").result(timeout_s=60)
        assert answer == {"crc": zlib.crc32(question.encode())}, answer
        number += 1
        time.sleep(0.2)
