"""Threads may read messages at once, from the first one on."""

from __future__ import annotations

import subprocess
import sys

import pytest

#: Eight threads decode their first envelope together, and change over as often as Python lets them.
_TOGETHER = """
import sys, threading
from producers.wire import messages
from producers.wire.validation.struct_types import build_struct_types
{build}
sys.setswitchinterval(1e-6)
item = {{"seq": 0, "tasks": ["sentiment"], "content": {{"type": "text", "value": "a"}}}}
envelope = {{"version": 1, "id": "e", "job": "j", "model": "text", "priority": 0, "queued_at": 1.0, "items": [item]}}
together = threading.Barrier(8)

def decode():
    together.wait()
    messages.decode(envelope)

threads = [threading.Thread(target=decode) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def ended(build: str) -> int:
    return subprocess.run([sys.executable, "-c", _TOGETHER.format(build=build)], check=False).returncode


#: A client builds the types when it is made, before it connects.
_CLIENT = "from producers import Client; client = Client('redis://127.0.0.1:1', 'sqlite:////nowhere/a.db')"


@pytest.mark.parametrize("build", ["build_struct_types()", _CLIENT], ids=["by itself", "by a client"])
def test_threads_may_decode_their_first_envelope_together(build: str) -> None:
    assert ended(build) == 0
