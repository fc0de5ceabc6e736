"""A producer of both versions: ``python ask.py LEDGER STOP`` asks single questions until the file STOP is there.

The ledger has a line for each answer: its Unix time, the seconds that it took, and whether it was right.
"""

import json
import sys
import time
import zlib
from pathlib import Path

from producers import Client

ledger, stop = map(Path, sys.argv[1:])

with Client() as client, ledger.open("a", encoding="utf-8") as answers:
    number = 0
    while not stop.exists():
        question, began = f"{ledger.stem} asks {number}", time.time()
        answer = client.submit("checksum", question, priority="interactive").result(timeout_s=120)
        right = answer == {"crc": zlib.crc32(question.encode())}
        answers.write(json.dumps([time.time(), time.time() - began, right]) + "\n")
        answers.flush()
        number += 1
        time.sleep(0.05)
