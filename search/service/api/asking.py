"""Questions to a run's predictor."""

from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Body
from fastapi.responses import JSONResponse, Response

from predictor import Prediction
from search.service.answers import ArchitectureTold, PredictAsked, PredictTold, Refused
from search.service.asking import Asked, Opened
from search.service.genes import changed_genes, checked, costs_of
from search.service.state import Run, Served
from space import Architecture, ArchitectureError, RunFolderError
from space.architecture import genes_of

router = APIRouter(prefix="/api/runs/{run}", tags=["asking"])
_REFUSALS: dict[int | str, dict[str, Any]] = {
    404: {"model": Refused, "description": "There is no such run."},
    409: {"model": Refused, "description": "The run has no predictor yet."},
    422: {"model": Refused, "description": "An architecture or a target is none of the run's."},
}


@router.post("/predict", response_model=PredictTold, responses=_REFUSALS)
async def predict(asked: PredictAsked, service: Served, run: Run) -> Response:
    """Say what architectures would measure, with 90 % intervals and costs: one, a batch, or changes to the winner."""
    opened = await service.oracle.open(run)
    genes = _asked_genes(asked, opened)
    if asked.changes:
        genes = changed_genes(genes, [(each.layer, each.gene, each.value) for each in asked.changes], opened.space)
    checked(genes, opened.space.layout)
    found = await service.oracle.predict(run, genes, asked.targets)
    service.metrics.predictions.inc(len(genes))
    costs = costs_of(opened.space, genes)
    metrics = opened.space.metrics
    return JSONResponse(
        {
            "run": run.path.name,
            "count": len(genes),
            "targets": [_told(opened, name, each) for name, each in found.items()],
            "costs": {metric: costs[:, place].tolist() for place, metric in enumerate(metrics)},
            "dense": opened.dense,
            "within": _within(opened, costs),
        }
    )


def _told(opened: Opened, name: str, found: Prediction) -> dict[str, object]:
    predictor = opened.predictors[name]
    return {
        "title": name,
        "value": found.value.tolist(),
        "lower": found.lower.tolist(),
        "upper": found.upper.tolist(),
        "protocol": predictor.protocol,
        "winner": opened.of_winner.get(name),
    }


def _within(opened: Opened, costs: np.ndarray) -> list[bool]:
    space = opened.space
    places = [space.metrics.index(budget.metric) for budget in space.budgets]
    inside: list[bool] = np.all(costs[:, places] <= space.limits, axis=1).tolist()
    return inside


def _asked_genes(asked: PredictAsked, opened: Opened) -> Asked:
    if asked.architectures is not None and asked.genes is not None:
        raise ArchitectureError("Architectures must come in one form, but this request has both; leave one out.")
    if asked.genes is not None:
        return np.array(_rectangular(asked.genes), dtype=np.float64)
    if asked.architectures is not None:
        return genes_of([Architecture.from_dict(each.model_dump()) for each in asked.architectures])
    if opened.winner is None:
        raise RunFolderError("A run must be finished for its winner to be asked about; give architectures.")
    return genes_of([opened.winner])


def _rectangular(genes: list[list[list[float]]]) -> list[list[list[float]]]:
    sizes = {len(layers) for layers in genes}, {len(layer) for layers in genes for layer in layers}
    if any(len(each) > 1 for each in sizes) or sizes[1] != {4}:
        raise ArchitectureError(
            "genes must have four numbers for each layer, and as many layers in each architecture, but they differ; "
            "give kv_groups, attention_sparsity, mlp_width and mlp_sparsity."
        )
    return genes


@router.post("/damages", responses=_REFUSALS)
async def damages(
    service: Served, run: Run, architecture: Annotated[ArchitectureTold | None, Body()] = None
) -> dict[str, list[list[float]]]:
    """Say what each layer's attention and MLP add to what an architecture loses; without one, to the winner's."""
    opened = await service.oracle.open(run)
    asked = opened.winner if architecture is None else Architecture.from_dict(architecture.model_dump())
    if asked is None:
        raise RunFolderError("A run must be finished for its winner to be asked about; give an architecture.")
    asked.check(opened.space.layout)
    return {"damages": (await service.oracle.damages(run, asked)).tolist()}
