"""The devices of ONNX Runtime and OpenVINO, to which a node can be pinned: `ort:PROVIDER` and `openvino:DEVICE`.

The runtime is asked in a process of its own: its libraries stay out of the caller.
``python -m workers.device.runtime_devices RUNTIME`` writes the answer as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass

from producers.wire.connection import without_secrets
from producers.wire.errors import ConfigurationError
from workers.models.backends.choice import Backend, Name, named_devices, require

#: The runtimes by the first part of a device's name.
RUNTIMES: dict[str, Name] = {"ort": "onnxruntime", "openvino": "openvino"}

#: The names under which OpenVINO spreads a network over several devices, or chooses among them.
SPREADS = ("HETERO", "AUTO")

#: Names that ONNX Runtime abbreviates.
_ALIASES = {"directml": "Dml"}

_PROVIDER = "ExecutionProvider"

_ANSWER_S = 60.0


@dataclass(frozen=True, slots=True)
class RuntimeDevices:
    """The devices of a runtime on this machine with their descriptions, and the names that it knows at all."""

    version: str
    here: dict[str, str]
    known: list[str]


def pinned(name: str) -> Backend | None:
    """Return the backend to which a device of this name pins a node, or None for a device of torch's."""
    prefix, _, device = name.partition(":")
    return Backend(RUNTIMES[prefix], device=device) if prefix in RUNTIMES and device else None


def found(name: str) -> tuple[str, str]:
    """Return the usual spelling of a device of a runtime, ``ort:…`` or ``openvino:…``, and its description.

    Raises ConfigurationError, with the devices that are here, for one that is unknown or missing.
    """
    prefix, _, device = name.partition(":")
    require(Backend(RUNTIMES[prefix]))
    there = _asked(RUNTIMES[prefix])
    if prefix == "ort":
        return _provider(device, there)
    return _device(device, there)


def _provider(given: str, there: RuntimeDevices) -> tuple[str, str]:
    plain = given.removesuffix(_PROVIDER).lower()
    plain = _ALIASES.get(plain, plain).lower()
    name = next((one for one in there.known if one.lower() == plain), None)
    if name not in there.here:
        problem = f"this installation of ONNX Runtime {there.version} {'lacks' if name else 'knows no provider'}"
        remedy = "install the package of ONNX Runtime that has it" if name else f"it knows {', '.join(there.known)}"
        raise _missing("ort", f"{problem} {name or repr(given)}", there, remedy)
    return f"ort:{name}", f"ONNX Runtime's {there.here[name]}"


def _device(given: str, there: RuntimeDevices) -> tuple[str, str]:
    name = given.upper().replace(" ", "")
    spread, _, _ = name.rpartition(":")
    if (spread and spread not in SPREADS) or name == "HETERO":
        problem = f"OpenVINO's device {given!r} is not supported"
        raise _missing("openvino", problem, there, "name a device, HETERO:DEVICE,DEVICE or AUTO:DEVICE,DEVICE")
    for own in named_devices(name):
        if own not in there.here:
            problem = f"OpenVINO {there.version} finds no device {own!r}"
            raise _missing("openvino", problem, there, "install the device's driver")
    described = ", ".join(there.here[own] for own in named_devices(name) or there.here)
    return f"openvino:{name}", f"OpenVINO on {described}"


def _missing(prefix: str, problem: str, there: RuntimeDevices, remedy: str) -> ConfigurationError:
    here = ", ".join(f"{prefix}:{name}" for name in there.here)
    return ConfigurationError(f"worker.devices: {problem}; here are {here}; {remedy}")


def _asked(runtime: Name) -> RuntimeDevices:
    command = [sys.executable, "-m", "workers.device.runtime_devices", runtime]
    environment = {**without_secrets(), "ORT_DISABLE_TELEMETRY": "1"}
    try:
        ran = subprocess.run(  # noqa: S603 - our own module
            command, env=environment, capture_output=True, text=True, timeout=_ANSWER_S, check=False
        )
        return RuntimeDevices(**json.loads(ran.stdout))
    except (OSError, ValueError, TypeError, subprocess.SubprocessError) as error:
        raise ConfigurationError(f"worker.devices: {runtime} does not tell its devices: {error}") from error


# --- in the process that is asked ---


def _of_onnxruntime() -> RuntimeDevices:
    import onnxruntime

    every = [name.removesuffix(_PROVIDER) for name in onnxruntime.get_all_providers()]
    here = [name.removesuffix(_PROVIDER) for name in onnxruntime.get_available_providers()]
    return RuntimeDevices(onnxruntime.__version__, {name: f"provider {name}" for name in here}, every)


def _of_openvino() -> RuntimeDevices:
    import openvino

    core = openvino.Core()
    here = {name: str(core.get_property(name, "FULL_DEVICE_NAME")) for name in core.available_devices}
    return RuntimeDevices(openvino.__version__.partition("-")[0], here, [])


def main() -> None:
    told = {"onnxruntime": _of_onnxruntime, "openvino": _of_openvino}[sys.argv[1]]()
    os.write(1, json.dumps({"version": told.version, "here": told.here, "known": told.known}).encode())


if __name__ == "__main__":
    main()
