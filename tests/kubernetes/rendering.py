"""Render the chart by Helm's own engine, and print the manifests as a JSON list: run in an environment of its own.

The engine's Python package has no dry run, so it installs into an API server that knows the kinds and has no objects.
Before Helm creates anything, it keeps the release in a Secret, and that has all that was rendered.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import helm_sdkpy
import kubernetes_validate
import yaml

GROUPS = {
    "v1": ["ConfigMap", "Secret", "Service"],
    "apps/v1": ["Deployment"],
    "batch/v1": ["Job"],
    "keda.sh/v1alpha1": ["ScaledObject"],
}

KUBERNETES = "1.33.0"

#: A release in a Secret, which arrives in Kubernetes' protobuf: gzip in base64.
RELEASE = re.compile(rb"H4sI[A-Za-z0-9+/]+=*")


class Server(ThreadingHTTPServer):
    """The API server. `release` is the first Secret that it was given."""

    daemon_threads = True
    release: re.Match[bytes] | None = None


class Api(BaseHTTPRequestHandler):
    """Answers the discovery, finds no object, and creates only Secrets."""

    server: Server

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/version":
            self._say(200, {"major": "1", "minor": "33", "gitVersion": f"v{KUBERNETES}"})
        elif path == "/api":
            self._say(200, {"kind": "APIVersions", "versions": ["v1"]})
        elif path == "/apis":
            self._say(
                200,
                {"kind": "APIGroupList", "apiVersion": "v1", "groups": [_group(one) for one in GROUPS if "/" in one]},
            )
        elif (group := path.removeprefix("/apis/").removeprefix("/api/")) in GROUPS:
            resources = [
                {"name": f"{kind.lower()}s", "kind": kind, "namespaced": True, "verbs": ["get", "create"]}
                for kind in GROUPS[group]
            ]
            self._say(
                200, {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group, "resources": resources}
            )
        elif path.endswith("/secrets"):
            self._say(200, {"kind": "SecretList", "apiVersion": "v1", "metadata": {}, "items": []})
        else:
            self._say(
                404, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
            )

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path.partition("?")[0].endswith("/secrets") and self.server.release is None:
            self.server.release = RELEASE.search(body)
        self._say(403, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Forbidden", "code": 403})

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _say(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _group(version: str) -> dict[str, Any]:
    name, _, short = version.partition("/")
    entry = {"groupVersion": version, "version": short}
    return {"name": name, "versions": [entry], "preferredVersion": entry}


def rendered(chart: str, values: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the manifests of a chart. Raises HelmError if it cannot be rendered."""
    server = Server(("127.0.0.1", 0), Api)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    named = {"name": "here", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}
    context = {"name": "here", "context": {"cluster": "here", "user": "here"}}
    kubeconfig = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [named],
        "contexts": [context],
        "current-context": "here",
    }
    kubeconfig["users"] = [{"name": "here", "user": {}}]
    config = helm_sdkpy.Configuration(namespace="inference", kubeconfig=yaml.safe_dump(kubeconfig))
    try:
        asyncio.run(helm_sdkpy.Install(config).run("argosy", chart, values=values, wait=False, timeout=10))
    except helm_sdkpy.HelmError:
        if server.release is None:
            raise  # it was not rendered
    finally:
        server.shutdown()
    assert server.release is not None
    release = json.loads(gzip.decompress(base64.b64decode(server.release[0])))
    texts = [release["manifest"], *(hook["manifest"] for hook in release.get("hooks", ()))]
    return [found for text in texts for found in yaml.safe_load_all(text) if found]


def main() -> None:
    """Read the values from standard input, render the chart that is the first argument, validate, print."""
    found = rendered(sys.argv[1], json.load(sys.stdin))
    for manifest in found:
        if not manifest["apiVersion"].startswith("keda.sh/"):
            kubernetes_validate.validate(manifest, KUBERNETES.rpartition(".")[0], strict=True)
    json.dump(found, sys.stdout)


main()
