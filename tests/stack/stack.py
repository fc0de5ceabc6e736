"""compose.yaml, up and down, under a project name, ports and passwords of its own."""

from __future__ import annotations

import secrets
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.stack.compose_file import COMPOSE, load
from tests.stack.engine import Engine

LONG_RUNNING = ("redis", "postgres", "worker", "flower", "gateway")


@dataclass(frozen=True)
class Stack:
    """A composed stack: its engine, the variables that fill compose.yaml, and when it was started (Unix seconds)."""

    engine: Engine
    project: str
    variables: dict[str, str]
    started_at: float = field(default_factory=time.time)

    @property
    def broker_url(self) -> str:
        return f"redis://:{self.variables['REDIS_PASSWORD']}@127.0.0.1:{self.variables['ARGOSY_REDIS_PORT']}/0"

    @property
    def store_url(self) -> str:
        password, port = self.variables["POSTGRES_PASSWORD"], self.variables["ARGOSY_POSTGRES_PORT"]
        return f"postgresql://argosy:{password}@127.0.0.1:{port}/argosy"

    @property
    def flower_url(self) -> str:
        return f"http://127.0.0.1:{self.variables['ARGOSY_FLOWER_PORT']}"

    @property
    def gateway_url(self) -> str:
        return f"http://127.0.0.1:{self.variables['ARGOSY_GATEWAY_PORT']}"

    @property
    def prometheus_url(self) -> str:
        return f"http://127.0.0.1:{self.variables['ARGOSY_PROMETHEUS_PORT']}"

    def compose(self, *arguments: str) -> str:
        compose = self.engine.compose_command()
        command = (*compose, "--project-name", self.project, "--file", str(COMPOSE), *arguments)
        return self.engine.run(*command, extra=self.variables)

    def container(self, service: str) -> str:
        """Return the id of a service's one container, running or ended."""
        return self.engine.run(
            *("docker", "ps", "--all", "--quiet", "--no-trunc"),
            *("--filter", f"label=com.docker.compose.project={self.project}"),
            *("--filter", f"label=com.docker.compose.service={service}"),
        ).strip()

    def inspect(self, service: str, template: str) -> str:
        return self.engine.run("docker", "inspect", "--format", template, self.container(service)).strip()

    def wait_until_healthy(self, service: str, timeout_s: float = 240) -> None:
        """Wait for the engine's own word on it; its past events since the start are told as well."""
        command = (
            *("docker", "events", "--since", str(int(self.started_at)), "--format", "{{.Status}}"),
            *("--filter", f"container={self.container(service)}", "--filter", "event=health_status"),
        )
        with subprocess.Popen(command, env=dict(self.engine.environment), stdout=subprocess.PIPE, text=True) as events:
            assert events.stdout is not None
            alarm = threading.Timer(timeout_s, events.terminate)
            alarm.start()
            healthy = any(line.strip() == "health_status: healthy" for line in events.stdout)
            alarm.cancel()
            events.terminate()
        assert healthy, f"{service} is not healthy after {timeout_s} s:\n{self.compose('logs', '--tail=60', service)}"


@contextmanager
def up(engine: Engine, say: Callable[[str], None]) -> Iterator[Stack]:
    """Build the images and start the CPU stack; take all of it down again, volumes too."""
    site = engine.folder / "site"
    site.mkdir()  # what is in it is read by the containers' own user
    stack = Stack(engine, f"argosytest{secrets.token_hex(3)}", _variables() | {"ARGOSY_SITE": str(site)})
    try:
        say("building the image")
        stack.compose("build", "--quiet", "worker")
        say("starting the services; the models are pulled once")
        stack.compose("up", "--detach")
        for service in LONG_RUNNING:
            stack.wait_until_healthy(service)
            say(f"{service} is healthy")
        yield stack
    except AssertionError:
        say(stack.compose("logs", "--tail=40"))
        raise
    finally:
        # --remove-orphans and a short grace: nobody waits for the work of a stack that is thrown away
        stack.compose("down", "--volumes", "--remove-orphans", "--timeout", "20")
        if not engine.own:
            for service in ("worker", "edge"):
                engine.run("docker", "image", "rm", load(stack.variables)["services"][service]["image"], check=False)
        say("the stack is down")


def _variables() -> dict[str, str]:
    names = ("REDIS_PASSWORD", "POSTGRES_PASSWORD", "FLOWER_PASSWORD")
    services = ("REDIS", "POSTGRES", "FLOWER", "GATEWAY", "PROMETHEUS")
    ports = [f"ARGOSY_{service}_PORT" for service in services]
    return {
        "COMPOSE_PROFILES": "cpu",
        "ARGOSY_IMAGE": "argosy-test",
        **{name: secrets.token_hex(12) for name in names},
        **dict(zip(ports, map(str, _free_ports(len(ports))), strict=True)),
    }


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [open_socket.getsockname()[1] for open_socket in sockets]
    finally:
        for open_socket in sockets:
            open_socket.close()
