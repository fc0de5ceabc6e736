"""How durable a commit must be."""

from __future__ import annotations

import threading
from enum import Enum, auto


class Weight(Enum):
    """How durable a commit is against a power cut. A killed process never undoes a commit.

    ``ACCEPTED``: a power cut undoes nothing, because only the store has the submitted items. ``RESULTS``: on PostgreSQL
    it undoes nothing, unless the server is configured otherwise. On SQLite it may undo the last moments: results
    together with their envelopes' `done` marks, so these envelopes are delivered and computed again (measured: 40,000
    rows/s, not 22,000, an envelope per transaction). ``NOTE``: claims, leases and publication marks may be undone on
    both.
    """

    ACCEPTED = auto()
    RESULTS = auto()
    NOTE = auto()


class Asking(threading.local):
    """The transaction for which a thread takes a connection: whether it is tried again if the connection is lost.

    A pool sees no options of the transaction.
    """

    tried_again: bool = False


asking = Asking()
