"""Notes each start of a Python process, and each look-up and connection to another machine.

A test puts this folder on the PYTHONPATH of the processes that it starts, and names a file in ARGOSY_QUIET. Each note is
a line: the process's command line, a tab, and "started" or the event. Names are looked up and connections are made by
Python's socket module, which raises audit events; `benchmarks.quiet` sees those of native code as well.
"""

import ipaddress
import os
import sys
from typing import Any

_LOOK_UPS = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo")
_SENDING = ("socket.connect", "socket.sendto", "socket.sendmsg")


def _is_near(host: Any) -> bool:
    if host in (None, "", b"", "localhost"):
        return True
    text = host.decode() if isinstance(host, bytes) else str(host)
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def _hears(event: str, arguments: tuple[Any, ...]) -> None:
    if event in _LOOK_UPS:
        host = arguments[0][0] if isinstance(arguments[0], tuple) else arguments[0]
    elif event in _SENDING and isinstance(arguments[1], tuple):  # other addresses are paths
        host = arguments[1][0]
    else:
        return
    if not _is_near(host):
        _note(f"{event} {arguments[:2]!r}")


def _note(text: str) -> None:
    line = f"{' '.join(' '.join(sys.orig_argv).split())}\t{text}\n".encode()
    notes = os.open(os.environ["ARGOSY_QUIET"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(notes, line)
    finally:
        os.close(notes)


if "ARGOSY_QUIET" in os.environ:
    _note("started")
    sys.addaudithook(_hears)
