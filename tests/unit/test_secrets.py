"""What a child process and a log do not get."""

from __future__ import annotations

import ast
import logging
import sys
from pathlib import Path

from producers.wire.command_line import LeaveTextOut
from producers.wire.connection import without_secrets

SECRETS = (
    "ARGOSY_BROKER_URL", "ARGOSY_STORE_PASSWORD_FILE", "ARGOSY_BLOB_URL", "ARGOSY_GATEWAY_RATE", "CELERY_BROKER_URL", "FLOWER_BASIC_AUTH",
    "PGPASSWORD", "PGPASSFILE", "PGSERVICEFILE", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN",
    "AZURE_STORAGE_CONNECTION_STRING", "AZURE_CLIENT_SECRET", "GOOGLE_APPLICATION_CREDENTIALS", "FSSPEC_S3_SECRET",
)  # fmt: skip
ROOT = Path(__file__).parents[2]
OTHERS = ("PATH", "HOME", "ARGOSY_FLEET", "ARGOSY_HOME", "AWS_REGION", "PGHOST", "LD_LIBRARY_PATH", "HTTPS_PROXY")


def test_a_child_gets_all_variables_but_the_secrets() -> None:
    given = dict.fromkeys((*SECRETS, *OTHERS), "x")
    assert without_secrets(given) == dict.fromkeys(OTHERS, "x")
    assert without_secrets(given, keep=("FLOWER_",)) == dict.fromkeys((*OTHERS, "FLOWER_BASIC_AUTH"), "x")


def test_every_child_process_is_given_its_environment() -> None:
    """Without `env` it would inherit all of it, and so the passwords of broker and store."""
    files = [file for package in ("producers", "results_store", "workers") for file in (ROOT / package).rglob("*.py")]
    calls = [
        (file.name, node)
        for file in files
        if "subprocess" in (text := file.read_text("utf-8"))
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("subprocess.run", "subprocess.Popen", "Popen")
    ]
    assert len(calls) >= 8
    assert [(name, node.lineno) for name, node in calls if "env" not in {word.arg for word in node.keywords}] == []


def test_a_failed_task_is_logged_by_class_and_place() -> None:
    """Celery's record holds the error's text, its traceback and the arguments of the task."""
    try:
        int("swordfish")
    except ValueError as error:
        context = {"name": "celery.map", "id": "an id", "exc": repr(error), "args": "swordfish"}
        record = logging.LogRecord(
            "celery.app.trace", 40, "trace.py", 1, "%(name)s %(exc)s", (context,), sys.exc_info()
        )
        other = logging.LogRecord("uvicorn.error", 40, "x.py", 1, "Exception in ASGI application\n", (), sys.exc_info())
    for logged, about in ((record, "task 'an id' failed"), (other, "Exception in ASGI application")):
        assert LeaveTextOut().filter(logged)
        text = logging.Formatter().format(logged)
        assert text.startswith(f"{about}: ValueError at test_secrets.py:")
        assert "swordfish" not in text
