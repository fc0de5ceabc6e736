"""A link between the fleet and a server, whose packets can be dropped without a word.

A TCP proxy accepts the fleet's connections. A packet filter on a proxy's socket (`SO_ATTACH_FILTER`) drops every packet
that arrives, before TCP sees it. So the peer gets no acknowledgement, no reset and no end, as from a host that vanished:
its keepalives and its `TCP_USER_TIMEOUT` notice, and nothing else does. A filter on the listening socket drops the first
packet of new connections. This needs Linux, but neither root nor a network namespace.
"""

from __future__ import annotations

import asyncio
import ctypes
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self

#: (host, port), or the path of a Unix socket.
Address = tuple[str, int] | str

#: Seconds after which the server notices that a client is silent for good, as by its own keepalive.
SERVER_NOTICES_S = 60.0

_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27
#: A program of one instruction: return 0, the number of bytes to keep.
_DROP = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))


class _Connection:
    """A client's connection and its counterpart at the server."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.flowing = asyncio.Event()
        self.flowing.set()
        self.lost = False
        self.client = client
        self.server = server

    def silence(self) -> None:
        self.flowing.clear()
        for writer in (self.client, self.server):
            _drop_packets(writer.get_extra_info("socket"))

    def speak(self) -> None:
        for writer in (self.client, self.server):
            _keep_packets(writer.get_extra_info("socket"))
        self.flowing.set()


class Link:
    """A proxy on loopback, in a thread of its own. `server` is asked for the address at each connection."""

    def __init__(self, server: Callable[[], Address]) -> None:
        self._server = server
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self._connections: set[_Connection] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="link", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def silence(self, *, existing: bool, new: bool) -> None:
        """Drop the packets of the existing connections, of new ones, or of both."""
        self._call(self._silence, existing, new)

    def speak(self, *, existing: bool) -> None:
        """Let new connections through again. The `existing` ones go on too, or stay silent for good."""
        self._call(self._speak, existing)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._accepted, sock=self._listener))
        self._loop.run_forever()
        server.close()
        self._loop.run_until_complete(self._close())
        self._loop.close()

    async def _close(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # the transports close in the next turn of the loop

    def _call(self, function: Callable[..., None], *arguments: bool) -> None:
        async def called() -> None:
            function(*arguments)

        asyncio.run_coroutine_threadsafe(called(), self._loop).result()

    def _silence(self, existing: bool, new: bool) -> None:
        for connection in self._connections if existing else ():
            connection.silence()
        if new:
            _drop_packets(self._listener)

    def _speak(self, existing: bool) -> None:
        _keep_packets(self._listener)
        silent = [each for each in self._connections if not each.flowing.is_set() and not each.lost]
        for connection in silent:
            if existing:
                connection.speak()
            else:
                connection.lost = True
                self._loop.call_later(SERVER_NOTICES_S, connection.server.transport.abort)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await _connected(self._server())
        except OSError:  # the server is down: its machine would refuse the connection
            _reset(writer)
            return
        connection = _Connection(writer, server_writer)
        self._connections.add(connection)
        pumps = [
            asyncio.ensure_future(_pump(reader, server_writer, connection.flowing)),
            asyncio.ensure_future(_pump(server_reader, writer, connection.flowing)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            server_writer.close()
            await connection.flowing.wait()  # a silent client is not told
            writer.close()
        except asyncio.CancelledError:  # the link ends; asyncio's streams would log the cancellation
            for each in (writer, server_writer):
                each.transport.abort()
        finally:
            for pump in pumps:
                pump.cancel()
            self._connections.discard(connection)


async def _connected(address: Address) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if isinstance(address, str):
        return await asyncio.open_unix_connection(address)
    return await asyncio.open_connection(*address)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, flowing: asyncio.Event) -> None:
    with suppress(OSError):
        while data := await reader.read(2**16):
            await flowing.wait()
            writer.write(data)
            await writer.drain()


def _drop_packets(sock: Any) -> None:
    program = struct.pack("HL", 1, ctypes.addressof(_DROP))
    with suppress(OSError):  # a Unix socket has no packets; what it brings waits in `_pump`
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


def _keep_packets(sock: Any) -> None:
    with suppress(OSError):  # it has no filter
        sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
