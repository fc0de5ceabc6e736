"""Tell webhooks that jobs have finished: at least once each, signed, retried for three days.

An answer of 2xx ends the telling, and so does 410 Gone. Everything else is tried again, redirects among it, which are
not followed. Messages go to public addresses only.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from producers.gateway.duties.duty import Duty
from producers.gateway.duties.webhook_message import message_of
from producers.gateway.views import job_view
from producers.wire.errors import ArgosyError
from producers.wire.outside.guarded_http import FAILURES, NotPublicError, answer_of
from results_store.errors import StoreError
from results_store.gateway.webhooks import DueWebhook

if TYPE_CHECKING:
    from producers.gateway.gateway import Gateway

log = logging.getLogger(__name__)

#: Seconds between looks.
LOOK_S = 1.0

#: The number of messages that are under way at the same time, in all, of a tenant and to a host, and the time limit of
#: each. A host that hangs holds up no other, and a tenant with many such hosts no other tenant.
AT_ONCE, OF_A_TENANT, OF_A_HOST = 16, 8, 4
ATTEMPT_S = 10.0

#: Seconds before the second attempt, the third, and so on: up to a quarter more, so that many failures at the same time
#: are not retried together. After the last of them the telling is given up.
RETRIES_S = (5, 30, 120, 600, 3600, 3 * 3600, 8 * 3600, 24 * 3600, 36 * 3600)
_JITTER = 0.25

_GONE = 410


class WebhookDuty(Duty):
    """Tells webhooks that jobs have finished."""

    def __init__(self, gateway: Gateway) -> None:
        super().__init__("webhooks", LOOK_S)
        self._gateway = gateway
        self._under_way: dict[asyncio.Task[None], DueWebhook] = {}
        self._threads = ThreadPoolExecutor(AT_ONCE, "argosy webhook")

    def under_way(self) -> list[asyncio.Task[None]]:
        return list(self._under_way)

    async def look(self) -> None:
        while self._gateway.settings.webhook_secrets and len(self._under_way) < AT_ONCE:
            hosts = _busy((due.host for due in self._under_way.values()), OF_A_HOST)
            tenants = _busy((due.job.tenant for due in self._under_way.values()), OF_A_TENANT)
            found = await self._gateway.client.ask(
                lambda store: store.webhooks.take(1, 2 * ATTEMPT_S, hosts, tenants)  # noqa: B023 - run at once
            )
            if not found:
                return
            task = asyncio.create_task(self._advance(found[0]), name=f"argosy webhook of {found[0].job.id}")
            self._under_way[task] = found[0]
            task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._under_way.pop(task, None)
        self.wake()

    async def _advance(self, due: DueWebhook) -> None:
        try:
            await self._tell(due)
        except (ArgosyError, StoreError) as error:
            log.warning("job %s: what came of its webhook is not noted, so it is told again: %s", due.job.id, error)
        except Exception:
            log.exception("job %s: its webhook cannot be told now", due.job.id)

    async def _tell(self, due: DueWebhook) -> None:
        ask = self._gateway.client.ask
        status, problem = await asyncio.get_running_loop().run_in_executor(self._threads, self._sent, due)
        if not problem:
            await ask(lambda store: store.webhooks.told(due, status or 0))
            return
        if status == _GONE or due.attempts >= len(RETRIES_S):
            log.error("job %s: its webhook on %s is given up: %s", due.job.id, due.host, problem)
            await ask(lambda store: store.webhooks.given_up(due, status, problem))
            return
        retry_in_s = RETRIES_S[due.attempts] * random.uniform(1, 1 + _JITTER)  # noqa: S311
        log.warning("job %s: its webhook on %s: %s; again in %.0f s", due.job.id, due.host, problem, retry_in_s)
        await ask(lambda store: store.webhooks.failed(due, status, problem, retry_in_s))

    def _sent(self, due: DueWebhook) -> tuple[int | None, str]:
        """Send a message. Return the status of the answer, and the reason if it was not taken."""
        settings = self._gateway.settings
        message = message_of(due, job_view(due.job), settings.webhook_secrets)
        private = settings.webhook_private
        until = time.monotonic() + ATTEMPT_S
        try:
            parts = urlsplit(due.url)
            with answer_of(
                "POST", parts, until, headers=message.headers, content=message.body, private_addresses=private
            ) as answer:
                taken = 200 <= answer.status < 300
                return answer.status, "" if taken else f"the host answers {answer.status}"
        except NotPublicError:
            return None, "the host's address is not public; --webhook-private allows it"
        except (*FAILURES, ValueError) as error:
            return None, f"cannot be reached: {error or type(error).__name__}"


def _busy(names: Iterable[str], most: int) -> list[str]:
    return [name for name, count in Counter(names).items() if count >= most]
