"""Sends the spans of a command to where OpenTelemetry's usual variables say. Without them nothing is loaded."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

logger = logging.getLogger(__name__)

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def begin(service: str, environment: Mapping[str, str] = os.environ) -> None:
    """Have spans sent from now on, if the environment names a receiver. `service` is the name of this program.

    The variables are OpenTelemetry's own: the receiver, its headers, the sampler, the service's name. Spans go by OTLP
    over HTTP. A provider that `opentelemetry-instrument` has set stays.
    """
    if not _is_wanted(environment):
        return
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        logger.warning("no traces are sent, although %s is set: pip install 'argosy[otel]'", _set(environment))
        return
    if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return
    named = {} if environment.get("OTEL_SERVICE_NAME") else {"service.name": service}
    provider = TracerProvider(resource=Resource.create(named))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


def _is_wanted(environment: Mapping[str, str]) -> bool:
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or not _set(environment):
        return False
    exporter = environment.get("OTEL_TRACES_EXPORTER", "otlp").strip().lower() or "otlp"
    protocols = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    protocol = next((environment[name] for name in protocols if environment.get(name)), "http/protobuf")
    if exporter != "none" and (exporter, protocol) != ("otlp", "http/protobuf"):
        logger.warning(
            "no traces are sent: they go by otlp over http/protobuf alone, not by %s, %s", exporter, protocol
        )
        return False
    return exporter == "otlp"


def _set(environment: Mapping[str, str]) -> str:
    return next((name for name in _ENDPOINTS if environment.get(name)), "")
