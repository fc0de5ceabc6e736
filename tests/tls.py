"""A server with TLS in front of one without, and the certificate of its own authority (``tls.pem``, valid until 2126)."""

from __future__ import annotations

import asyncio
import ssl
import threading
from asyncio import StreamReader, StreamWriter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

CERTIFICATE = Path(__file__).with_suffix(".pem")


@contextmanager
def tls_in_front_of(port: int) -> Iterator[int]:
    """Yield a port of this machine whose connections with TLS lead to `port` without."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="tls")
    thread.start()
    try:
        connected = asyncio.start_server(lambda *own: _joined(*own, port), "127.0.0.1", 0, ssl=context)
        server = asyncio.run_coroutine_threadsafe(connected, loop).result(10)
        yield server.sockets[0].getsockname()[1]
        asyncio.run_coroutine_threadsafe(_end(server), loop).result(10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _joined(reader: StreamReader, writer: StreamWriter, port: int) -> None:
    inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
    await asyncio.gather(_copied(reader, inner_writer), _copied(inner_reader, writer))


async def _copied(reader: StreamReader, writer: StreamWriter) -> None:
    with suppress(OSError, asyncio.CancelledError):
        while data := await reader.read(2**16):
            writer.write(data)
            await writer.drain()
    writer.close()


async def _end(server: asyncio.Server) -> None:
    server.close()
    connections = asyncio.all_tasks() - {asyncio.current_task()}
    for task in connections:
        task.cancel()
    await asyncio.gather(*connections, return_exceptions=True)
