"""The Helm chart, rendered by Helm's engine and validated by the schemas of Kubernetes and KEDA. No cluster is needed."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jsonschema
import pytest
import yaml

from producers.gateway.metrics.health_listener import _within
from tests.stack.compose_file import load
from workers import settings

HERE = Path(__file__).parent
CHART = HERE.parents[1] / "docker" / "helm" / "argosy"
PYTHON = os.environ.get("ARGOSY_TEST_KUBERNETES", "")

pytestmark = pytest.mark.skipif(
    not PYTHON, reason="Helm's engine is in an environment of its own: `make test-kubernetes`"
)

SCALED = {
    "fleet": '[worker]\nmodels = ["text", "vision"]\n',
    "models": {"claim": "weights"},
    "workers": {
        "cpu": {"scaling": {"enabled": True, "models": ["text", "a b&c"]}},
        "gpu": {
            "device": "cuda:0",
            "image": {"tag": "gpu"},
            "replicas": 2,
            "terminationGracePeriodSeconds": 45,
            "startupSeconds": 600,
            "resources": {"limits": {"nvidia.com/gpu": 1}},
            "nodeSelector": {"gpu": "true"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
            "scaling": {"enabled": False},
        },
    },
}


def rendered(values: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the manifests by kind and name, validated strictly by Kubernetes' schemas."""
    command = [PYTHON, str(HERE / "rendering.py"), str(CHART)]
    done = subprocess.run(command, input=json.dumps(values), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {(one["kind"], one["metadata"]["name"]): one for one in json.loads(done.stdout)}


@pytest.fixture(scope="module")
def plain() -> dict[tuple[str, str], dict[str, Any]]:
    return rendered({})


@pytest.fixture(scope="module")
def scaled() -> dict[tuple[str, str], dict[str, Any]]:
    return rendered(SCALED)


def pods(manifests: dict[tuple[str, str], dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the pods' specifications by the names of their Deployments and Jobs."""
    found = {}
    for (_, name), manifest in manifests.items():
        if "template" in manifest.get("spec", {}):
            found[name] = manifest["spec"]["template"]["spec"]
    return found


def test_the_processes_are_those_of_the_composed_stack(plain: dict[tuple[str, str], dict[str, Any]]) -> None:
    """The same commands, and a worker's variables for the same addresses."""
    composed = load({"REDIS_PASSWORD": "a", "POSTGRES_PASSWORD": "b", "FLOWER_PASSWORD": "c"})["services"]
    found = pods(plain)
    same = {"worker": "worker-cpu", "gateway": "gateway", "flower": "flower", "migrate": "migrate"}
    for service, name in same.items():
        (container,) = found[f"argosy-{name}"]["containers"]
        assert container["command"] == composed[service]["command"]
    assert found["argosy-worker-cpu"]["initContainers"][0]["command"] == composed["models"]["command"]
    assert found["argosy-monitor"]["containers"][0]["command"] == composed["gateway"]["command"]
    assert plain["Job", "argosy-migrate"]["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"


def test_no_pod_has_rights_or_variables_that_it_did_not_ask_for(scaled: dict[tuple[str, str], dict[str, Any]]) -> None:
    """Service links would set ARGOSY_GATEWAY_PORT to an address, which `argosy gateway` takes for its port."""
    for name, pod in pods(scaled).items():
        assert (pod["enableServiceLinks"], pod["automountServiceAccountToken"]) == (False, False), name
        assert pod["securityContext"]["runAsNonRoot"]
        for container in (*pod["containers"], *pod.get("initContainers", ())):
            assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
            assert container["securityContext"]["readOnlyRootFilesystem"]
            assert all("value" not in one or "://" not in one["value"] for one in container["env"]), "a password"


def test_a_worker_has_the_time_to_give_back_what_is_unfinished(plain: dict[tuple[str, str], dict[str, Any]]) -> None:
    """Its own grace and fifteen seconds; probes look at the file that its watchdog removes."""
    pod = pods(plain)["argosy-worker-cpu"]
    assert pod["terminationGracePeriodSeconds"] >= settings.load(environment={}).worker.grace_s + 15
    assert pod["shareProcessNamespace"]
    (worker,) = pod["containers"]
    file = worker["command"][worker["command"].index("--ready-file") + 1]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert worker[probe]["exec"]["command"] == ["test", "-e", file]


def test_keda_asks_the_scaler_from_and_to_zero(scaled: dict[tuple[str, str], dict[str, Any]]) -> None:
    """By KEDA's own schema, with parameters that the gateway knows; the Deployment's replicas are then KEDA's."""
    found = scaled["ScaledObject", "argosy-worker-cpu"]
    (crd,) = [one for one in yaml.safe_load_all((HERE / "keda.sh_scaledobjects.yaml").read_text()) if one]
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    jsonschema.validate(found, _strict(schema))
    (trigger,) = found["spec"]["triggers"]
    url = urlsplit(trigger["metadata"]["url"])
    assert ("Service", (url.hostname or "").partition(".")[0]) in scaled
    asked = parse_qs(url.query)
    assert asked.pop("model") == ["text", "a b&c"]
    assert _within({name: values[0] for name, values in asked.items()})
    assert found["spec"]["minReplicaCount"] == 0
    assert "replicas" not in scaled["Deployment", "argosy-worker-cpu"]["spec"]
    assert scaled["Deployment", "argosy-worker-gpu"]["spec"]["replicas"] == 2
    assert ("ScaledObject", "argosy-worker-gpu") not in scaled
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**found, "spec": {**found["spec"], "maxReplicas": 3}}, _strict(schema))


def _strict(schema: Any) -> Any:
    """Return the schema without room for unknown fields, except of metadata."""
    if not isinstance(schema, dict):
        return schema
    strict = {
        name: {key: _strict(inner) for key, inner in value.items()} if name == "properties" else _strict(value)
        for name, value in schema.items()
    }
    return strict | ({"additionalProperties": False} if isinstance(strict.get("properties"), dict) else {})


def test_an_entry_has_what_it_leaves_out_from_the_defaults() -> None:
    """With the fields that docs/operations/kubernetes.md names for GPUs."""
    gpu = {"device": "cuda:0", "image": {"tag": "gpu"}, "resources": {"limits": {"nvidia.com/gpu": 1}}}
    found = pods(rendered({"workers": {"gpu": gpu}}))
    (worker,) = found["argosy-worker-gpu"]["containers"]
    assert found["argosy-worker-gpu"]["terminationGracePeriodSeconds"] == 45
    assert worker["startupProbe"]["failureThreshold"] == 120
    assert worker["resources"]["limits"] == {"memory": "4Gi", "nvidia.com/gpu": 1}
    assert worker["resources"]["requests"] == {"cpu": "2", "memory": "4Gi"}
    (cpu,) = found["argosy-worker-cpu"]["containers"]
    assert cpu["resources"]["limits"] == {"memory": "4Gi"}


def test_an_entry_may_have_zero_and_false_in_place_of_a_default() -> None:
    own = {"replicas": 0, "scaling": {"enabled": False}}
    found = rendered({"workerDefaults": {"scaling": {"enabled": True}}, "workers": {"other": own}})
    assert found["Deployment", "argosy-worker-other"]["spec"]["replicas"] == 0
    assert ("ScaledObject", "argosy-worker-other") not in found
    assert ("ScaledObject", "argosy-worker-cpu") in found


def test_values_reach_their_pods(scaled: dict[tuple[str, str], dict[str, Any]]) -> None:
    """An image, a device and the weights of its own; the same fleet.toml for all."""
    found = pods(scaled)
    (gpu,) = found["argosy-worker-gpu"]["containers"]
    assert gpu["image"] == "argosy:gpu"
    assert "cuda:0" in gpu["command"]
    assert "initContainers" not in found["argosy-worker-gpu"]
    assert ("Job", "argosy-models-1") in scaled
    assert scaled["ConfigMap", "argosy-fleet"]["data"]["fleet.toml"] == SCALED["fleet"]
    assert {"name": "ARGOSY_FLEET", "value": "/etc/argosy/fleet.toml"} in gpu["env"]
