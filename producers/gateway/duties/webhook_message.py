"""Messages to webhooks in the form of Standard Webhooks (https://www.standardwebhooks.com), and their signatures."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from producers.wire.errors import ConfigurationError, InvalidInput
from results_store.gateway.webhooks import DueWebhook

#: What a secret begins with, and the number of its bytes.
PREFIX = "whsec_"
_LEAST_BYTES, _MOST_BYTES = 24, 64

FIELD = "webhook"


@dataclass(frozen=True, slots=True)
class SignedMessage:
    """A message to send. Its headers have the id, which is the same in each attempt, the time and the signatures."""

    headers: dict[str, str]
    body: bytes


def message_of(due: DueWebhook, view: dict[str, Any], secrets: Sequence[str]) -> SignedMessage:
    """Return the message that a job has finished, signed with each of the secrets."""
    ended = due.job.finished_at or 0.0
    id_ = f"msg_{due.job.id}_{int(ended * 1e6)}"
    at = str(int(time.time()))
    told = {"type": "job.finished", "timestamp": datetime.fromtimestamp(ended, UTC).isoformat(), "data": view}
    body = json.dumps(told, ensure_ascii=False, separators=(",", ":")).encode()
    signed = f"{id_}.{at}.".encode() + body
    signatures = [base64.b64encode(hmac.digest(key_of(secret), signed, hashlib.sha256)).decode() for secret in secrets]
    return SignedMessage(
        {
            "Content-Type": "application/json",
            "User-Agent": "argosy",
            "webhook-id": id_,
            "webhook-timestamp": at,
            "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
        },
        body,
    )


def key_of(secret: str) -> bytes:
    """Return the bytes of a secret. Raises ConfigurationError without telling it."""
    try:
        if not secret.startswith(PREFIX):
            raise ValueError
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not _LEAST_BYTES <= len(key) <= _MOST_BYTES:
        raise ConfigurationError(
            f"--webhook-secret: must be {PREFIX} and {_LEAST_BYTES} to {_MOST_BYTES} bytes in base64; "
            f"echo {PREFIX}$(openssl rand -base64 32)"
        )
    return key


def check_address(url: str, *, secrets: Sequence[str], private: bool) -> None:
    """Raise InvalidInput if a webhook cannot be sent to an address.

    `private` allows http. A name is looked up when the message is sent, since its addresses change.
    """
    if not secrets:
        remedy = "leave it out, or start the gateway with --webhook-secret"
        raise InvalidInput(FIELD, "is not available here, since the gateway has no secret to sign with", remedy)
    try:
        parts = urlsplit(url)
        valid = bool(parts.hostname) and parts.port != 0 and url.isascii() and not any(map(str.isspace, url))
    except ValueError:
        valid = False
    if not valid:
        raise InvalidInput(FIELD, "is not a URL", "send one such as https://app.example/hooks/argosy")
    if parts.scheme != "https" and not (private and parts.scheme == "http"):
        raise InvalidInput(FIELD, f"has the scheme {parts.scheme!r}", "send an https URL")
    if parts.username is not None or parts.password is not None:
        raise InvalidInput(FIELD, "carries a name or password", "put a token into its path, or check the signature")
