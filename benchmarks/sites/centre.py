"""The centre of a site: a fleet with its gateway, and HTTPS in front of it at the end of the link."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.disasters.fleet import GatewayFleet
from benchmarks.sites.tunnel import CENTRE
from producers.gateway.keys import new_key
from producers.wire.messages import Envelope, stored_envelope
from results_store.store import Store
from workers import settings
from workers.fleet.embedded_broker import free_port


@dataclass(frozen=True, slots=True)
class Centre:
    """A running centre: the address that the site calls, and the files that it needs for that."""

    address: str
    key_file: Path
    ca_file: Path
    database: Path

    def inputs(self) -> list[bytes]:
        """Return the inputs of all items that the centre has accepted."""
        with sqlite3.connect(f"file:{self.database}?mode=ro", uri=True) as database:
            rows = database.execute("SELECT payload, content_type FROM payloads").fetchall()
        envelopes = [stored_envelope(payload, kind)[0] for payload, kind in rows]
        return [_bytes(item.input) for envelope in envelopes for item in _items(envelope)]


def _items(envelope: Envelope) -> Any:
    return envelope.items


def _bytes(given: Any) -> bytes:
    return given.encode() if isinstance(given, str) else bytes(given.data)


@contextmanager
def centre_in(folder: Path, fleet_file: Path) -> Iterator[Centre]:
    """Run a centre until the block ends."""
    home = folder / "centre"
    key, certificate = folder / "tls.key", folder / "tls.pem"
    _certify(key, certificate)
    fleet = GatewayFleet(settings.load(fleet_file), home, config=fleet_file, gateway=("--rate", "10000"))
    with fleet, Store(fleet.store_url) as store:
        text, row = new_key("site", "site", created_at=time.time())
        store.keys.add(row)
        (folder / "centre.key").write_text(text, encoding="utf-8")
        with patch.dict(os.environ, {"ARGOSY_FLEET": str(fleet_file)}):  # it must know the centre's own models
            fleet.start_gateway()
        with _https(int(fleet.gateway_url.rpartition(":")[2]), key, certificate) as port:
            yield Centre(f"https://{CENTRE}:{port}", folder / "centre.key", certificate, home / "store.db")


def _certify(key: Path, certificate: Path) -> None:
    """Make a certificate for the centre's address."""
    words = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=centre"]
    words += ["-addext", f"subjectAltName=IP:{CENTRE}", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(["openssl", *words], check=True, capture_output=True)


@contextmanager
def _https(gateway: int, key: Path, certificate: Path) -> Iterator[int]:
    """Serve TLS at the centre's address in front of the gateway's port, in a thread."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    port, loop = free_port(), asyncio.new_event_loop()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.CancelledError):
            to_reader, to_writer = await asyncio.open_connection("127.0.0.1", gateway)
            await asyncio.gather(_pump(reader, to_writer), _pump(to_reader, writer))

    def run() -> None:
        asyncio.set_event_loop(loop)
        server = loop.run_until_complete(asyncio.start_server(serve, CENTRE, port, ssl=context))
        loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0.1))
        loop.close()

    thread = threading.Thread(target=run, name="https")
    thread.start()
    try:
        yield port
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(2**16):
            writer.write(data)
            await writer.drain()
    finally:
        with suppress(OSError):
            writer.close()
