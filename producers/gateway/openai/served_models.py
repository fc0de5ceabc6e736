"""/v1/models: the tasks that OpenAI's endpoints can serve."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from producers.gateway.answers import Json
from producers.gateway.gateway import Here, Viewer
from producers.gateway.openai.openai_answers import ModelList, ModelView
from producers.gateway.openapi.schema_of import answer_of
from producers.gateway.problems import Problem
from producers.wire.catalogue import Task

router = APIRouter(prefix="/v1/models", tags=["openai"])

KINDS = ("feature-extraction", "text-generation", "automatic-speech-recognition")


@router.get("", responses=answer_of(ModelList))
async def models(gateway: Here, _: Viewer) -> Response:
    """List the models. Each is a task of the fleet, by its name."""
    catalogue = await gateway.client.catalogue()
    able = [task for task in catalogue.tasks.values() if task.kind.name in KINDS]
    return Json({"object": "list", "data": [_view(task) for task in able]})


@router.get("/{model}", responses=answer_of(ModelView))
async def model(model: str, gateway: Here, _: Viewer) -> Response:
    """Return a model."""
    task = (await gateway.client.catalogue()).tasks.get(model)
    if task is None or task.kind.name not in KINDS:
        raise Problem(404, "model_not_found", f"no model {model!r}", field="model", remedy="GET /v1/models lists them")
    return Json(_view(task))


def _view(task: Task) -> ModelView:
    # the fleet does not know a model's date, but clients expect the field
    return {"id": task.name, "object": "model", "created": 0, "owned_by": task.model, "kind": task.kind.name}
