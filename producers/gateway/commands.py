"""`argosy gateway`: serve HTTP and manage API keys. FastAPI is imported only to serve."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from producers.commands.operate import Duration, open_store
from producers.wire.command_line import Finite, say, user

if TYPE_CHECKING:
    from results_store.gateway.api_keys import ApiKey, Role

MIB = 2**20

#: As `Role`; importing the store would slow the start of every command.
ROLES = ("viewer", "member", "operator")

#: The first second of the year 9999: earlier versions took an expiry that no calendar has.
_LAST_DAY = 253_370_764_800


class Origin(click.ParamType[str]):
    """The origin of a site, as browsers send it."""

    name = "origin"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        origin = str(value).lower().rstrip("/")
        if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#@\s]+", origin):
            self.fail(f"{value!r} is not an origin; write scheme and host alone, or *", param, ctx)
        return origin


@click.group(invoke_without_command=True)
@click.option(
    "--host", default="127.0.0.1", show_default=True, envvar="ARGOSY_GATEWAY_HOST", help="Address to listen on."
)
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, envvar="ARGOSY_GATEWAY_PORT")
@click.option("--no-auth", is_flag=True, help="Require no key: everybody on this machine is an operator.")
@click.option(
    "--max-body-mib", type=Finite(0, min_open=True), default=32, show_default=True,
    envvar="ARGOSY_GATEWAY_MAX_BODY_MIB",
    help="The largest request body, in MiB; uploads and streams have their own limits.",
)  # fmt: skip
@click.option(
    "--max-file-mib", type=Finite(0, min_open=True), default=200, show_default=True,
    envvar="ARGOSY_GATEWAY_MAX_FILE_MIB",
    help="The largest file for /v1/files and /v1/audio, in MiB.",
)  # fmt: skip
@click.option(
    "--max-items", type=click.IntRange(1), default=1_000_000, show_default=True, envvar="ARGOSY_GATEWAY_MAX_ITEMS",
    help="The most items in one submission.",
)  # fmt: skip
@click.option(
    "--rate", "rate_per_s", type=Finite(0, min_open=True), default=100, show_default=True, envvar="ARGOSY_GATEWAY_RATE",
    help="Requests per second for each key without its own rate; a burst may have twice as many.",
)  # fmt: skip
@click.option(
    "--health-port", type=click.IntRange(0, 65535), envvar="ARGOSY_GATEWAY_HEALTH_PORT",
    help="Answer /healthz and /readyz at this port too, where no other request competes with them.",
)  # fmt: skip
@click.option(
    "--embedding-tokenizer", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    envvar="ARGOSY_GATEWAY_EMBEDDING_TOKENIZER",
    help="A tokenizer.json: /v1/embeddings reads its token ids. Without it, token ids are refused.",
)  # fmt: skip
@click.option(
    "--allow-host", "allowed_hosts", multiple=True, metavar="NAME",
    help="With --no-auth: answer under this name too. May be repeated.",
)  # fmt: skip
@click.option(
    "--allow-origin", "allowed_origins", type=Origin(), multiple=True, metavar="ORIGIN",
    envvar="ARGOSY_GATEWAY_ALLOW_ORIGIN",
    help="Let pages of this site, such as https://app.example, use the API (CORS); * for all. May be repeated.",
)  # fmt: skip
@click.option(
    "--webhook-secret", "webhook_secrets", multiple=True, metavar="SECRET", envvar="ARGOSY_GATEWAY_WEBHOOK_SECRET",
    help="Sign webhooks with this secret, whsec_ and base64; with several, with each. Better set the variable.",
)  # fmt: skip
@click.option(
    "--webhook-private", is_flag=True, envvar="ARGOSY_GATEWAY_WEBHOOK_PRIVATE",
    help="Send webhooks to http URLs and to addresses that are not public, too.",
)  # fmt: skip
@click.pass_context
def gateway(
    ctx: click.Context,
    *,
    host: str,
    port: int,
    health_port: int | None,
    allowed_hosts: tuple[str, ...],
    allowed_origins: tuple[str, ...],
    embedding_tokenizer: Path | None,
    no_auth: bool,
    max_body_mib: float,
    max_file_mib: float,
    max_items: int,
    rate_per_s: float,
    webhook_secrets: tuple[str, ...],
    webhook_private: bool,
) -> None:
    """Serve the fleet over HTTP until Ctrl-C: REST, server-sent events, and OpenAI's endpoints.

    \b
    argosy gateway keys add laptop --tenant research    print a new key, once
    argosy gateway                                      serve http://127.0.0.1:8080/openapi.json
    argosy gateway --no-auth                            without keys, for this machine only

    To serve other machines, put a server with TLS in front. docs/gateway.md describes the API.
    """
    if ctx.invoked_subcommand is not None:
        return
    from producers.wire.errors import ConfigurationError

    try:
        from producers.gateway.browsers import name_of
        from producers.gateway.duties.webhook_message import key_of
        from producers.gateway.server import serve
        from producers.gateway.settings import GatewaySettings
    except ImportError as error:
        raise ConfigurationError(f"the gateway needs its packages; pip install 'argosy[gateway]' ({error})") from error
    settings = GatewaySettings(
        auth=not no_auth,
        max_body_bytes=int(max_body_mib * MIB),
        max_file_bytes=int(max_file_mib * MIB),
        max_items=max_items,
        rate_per_s=rate_per_s,
        allowed_hosts=tuple(name_of(name) for name in allowed_hosts),
        allowed_origins=allowed_origins,
        embedding_tokenizer=embedding_tokenizer,
        webhook_secrets=webhook_secrets,
        webhook_private=webhook_private,
    )
    for secret in webhook_secrets:
        key_of(secret)
    serve(settings, host, port, health_port)


@gateway.group()
def keys() -> None:
    """Add, list and remove the gateway's API keys."""


@keys.command()
@click.argument("name")
@click.option("--tenant", help="Tenant that owns the key's jobs. The key sees only these. Optional with --all-tenants.")
@click.option(
    "--role", type=click.Choice(ROLES), default="member", show_default=True,
    help="A viewer only reads; a member also submits, cancels and replays; an operator runs the whole fleet.",
)  # fmt: skip
@click.option("--all-tenants", is_flag=True, help="The key sees every tenant's jobs, and the fleet; for viewers.")
@click.option("--operator", is_flag=True, help="The same as --role operator, which sees all tenants.")
@click.option(
    "--expires", "expires_s", type=Duration(), help="Lifetime of the key: 12h, 90d, 52w.  [default: unlimited]"
)
@click.option("--rate", "rate_per_s", type=Finite(0, min_open=True), help="The most requests per second.")
def add(
    name: str,
    *,
    tenant: str | None,
    role: Role,
    all_tenants: bool,
    operator: bool,
    expires_s: float | None,
    rate_per_s: float | None,
) -> None:
    """Make a key with the name NAME and print it. It is shown only once, because the store keeps only its hash.

    \b
    argosy gateway keys add laptop --tenant research --expires 90d
    argosy gateway keys add wall --role viewer --all-tenants
    argosy gateway keys add ann --role operator
    """
    from producers.gateway.keys import checked_rights, new_key
    from producers.wire.errors import InvalidInput

    role = "operator" if operator else role
    try:
        owner = checked_rights(role, tenant, all_tenants=all_tenants)
    except InvalidInput as error:
        raise click.UsageError(f"--{error}".replace("all_tenants", "all-tenants")) from error
    now = time.time()
    expires_at = None if expires_s is None else now + expires_s
    text, key = new_key(
        name,
        owner,
        role=role,
        all_tenants=all_tenants,
        expires_at=expires_at,
        rate_per_s=rate_per_s,
        created_at=now,
    )
    with open_store() as store:
        if not store.keys.add(key, by=user()):
            raise click.UsageError(f"there is already a key {name!r}; remove it first, or choose another name")
    say(text)


@keys.command("list")
def list_() -> None:
    """List the keys by name, without their secrets."""
    with open_store() as store:
        found = store.keys.all()
    for key in found:
        say(_line(key))
    if not found:
        say("argosy: no keys yet; make one with `argosy gateway keys add NAME --tenant TENANT`", err=True)


@keys.command()
@click.argument("name")
def remove(name: str) -> None:
    """Remove the key with the name NAME. Gateways refuse it within ten seconds; its tenant's jobs stay."""
    with open_store() as store:
        if not store.keys.remove(name, by=user()):
            raise click.UsageError(f"no key {name!r}; `argosy gateway keys list` lists them")
    say(f"key {name} removed", err=True)


def _line(key: ApiKey) -> str:
    def when(at: float) -> str:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(min(at, _LAST_DAY)))

    expiry = "never expires" if key.expires_at is None else f"expires {when(key.expires_at)}"
    role = "viewer of all tenants" if key.role == "viewer" and key.all_tenants else key.role
    return f"{key.name}  tenant {key.tenant!r}  {role}  created {when(key.created_at)}  {expiry}"


COMMANDS: list[click.Command] = [gateway]
