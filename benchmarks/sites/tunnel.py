"""The link of a site: a network namespace whose only way out has a delay, a bandwidth, and packets that can be lost.

Two TUN devices, one in the namespace, are the ends of a cable that a thread here carries packet by packet. It does what
`tc netem delay … rate …` does, also on kernels without netem, and counts the bytes of all IP packets. Needs root.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import subprocess
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Self

#: The addresses of the two ends.
CENTRE, SITE = "10.87.1.1", "10.87.1.2"

#: Packets that would wait longer than this for the cable are lost, as in a router's buffer.
BUFFER_S = 0.5

_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_PACKET_BYTES = 65535


@dataclass(slots=True)
class _Direction:
    """The packets on their way from one device to the other, each with the time of its arrival."""

    source: int
    sink: int
    on_way: deque[tuple[float, bytes]] = field(default_factory=deque)
    free_at: float = 0.0
    bytes: int = 0


class TunnelLink:
    """A link with a one-way `delay_s` and a bandwidth for each direction. `namespace` is the site's."""

    def __init__(self, *, delay_s: float = 0.05, bits_per_s: float = 10e6) -> None:
        self.namespace = f"argosy-{os.getpid()}"
        self._delay_s, self._bits_per_s = delay_s, bits_per_s
        self._devices = [f"ac{os.getpid()}", f"as{os.getpid()}"]
        self._silent = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._carry, name="tunnel")
        self._directions: list[_Direction] = []

    @property
    def bytes(self) -> int:
        """The bytes of the packets that were sent so far, in both directions."""
        return sum(one.bytes for one in self._directions)

    def __enter__(self) -> Self:
        _ip("netns", "add", self.namespace)
        centre, site = map(_tun, self._devices)
        self._directions = [_Direction(centre, site), _Direction(site, centre)]
        _ip("link", "set", self._devices[1], "netns", self.namespace)
        _ip("address", "add", CENTRE, "peer", SITE, "dev", self._devices[0])
        _ip("link", "set", self._devices[0], "up")
        self._in("address", "add", SITE, "peer", CENTRE, "dev", self._devices[1])
        for device in ("lo", self._devices[1]):
            self._in("link", "set", device, "up")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._thread.join()
        for one in self._directions:
            os.close(one.source)  # the devices end with it
        _ip("netns", "delete", self.namespace)

    def command(self, *words: str) -> list[str]:
        """Return the command that runs another in the site's namespace."""
        return ["ip", "netns", "exec", self.namespace, *words]

    def cut(self) -> None:
        """Let the site's system know that it has no link."""
        self._in("link", "set", self._devices[1], "down")

    def mend(self) -> None:
        """End a cut, or the silence."""
        self._silent = False
        self._in("link", "set", self._devices[1], "up")

    def silence(self) -> None:
        """Lose all packets, and tell nobody."""
        self._silent = True

    def _in(self, *words: str) -> None:
        _ip("-n", self.namespace, *words)

    def _carry(self) -> None:
        readable = select.poll()
        by_source = {one.source: one for one in self._directions}
        for source in by_source:
            readable.register(source, select.POLLIN)
        while not self._closing.is_set():
            due = min((one.on_way[0][0] for one in self._directions if one.on_way), default=time.monotonic() + 0.1)
            for source, _ in readable.poll(max(0.0, due - time.monotonic()) * 1000):
                self._take(by_source[source])
            for one in self._directions:
                self._deliver(one)

    def _take(self, one: _Direction) -> None:
        try:
            packet = os.read(one.source, _PACKET_BYTES)
        except OSError:  # the device is down
            return
        now = time.monotonic()
        starts_at = max(now, one.free_at)
        if self._silent or starts_at - now > BUFFER_S:
            return
        one.bytes += len(packet)
        one.free_at = starts_at + 8 * len(packet) / self._bits_per_s
        one.on_way.append((one.free_at + self._delay_s, packet))

    def _deliver(self, one: _Direction) -> None:
        now = time.monotonic()
        while one.on_way and one.on_way[0][0] <= now:
            _, packet = one.on_way.popleft()
            if not self._silent:
                try:
                    os.write(one.sink, packet)
                except OSError:  # as above
                    return


def _tun(name: str) -> int:
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return device


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
