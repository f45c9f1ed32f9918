"""Questions to a run's predictor."""

from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Body
from fastapi.responses import JSONResponse, Response

from predictor import Prediction
from search.service.answers import ArchitectureTold, PredictAsked, PredictTold, Refused
from search.service.asking import Opened
from search.service.state import Run, Served
from space import GENES, Architecture, ArchitectureError, RunFolderError, read_genes
from space.architecture import genes_of
from space.batch import Genes

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
    found = await service.oracle.predict(run, genes, asked.targets)
    service.metrics.predictions.inc(len(genes))
    metrics = opened.space.metrics
    return JSONResponse(
        {
            "run": run.path.name,
            "count": len(genes),
            "targets": [_told(opened, name, each) for name, each in found.predicted.items()],
            "costs": {metric: found.costs[:, place].tolist() for place, metric in enumerate(metrics)},
            "dense": opened.dense,
            "within": _within(opened, found.costs),
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


def _asked_genes(asked: PredictAsked, opened: Opened) -> Genes:
    """Return the genes (architectures, layers, genes) that are asked about, with the changes made.

    Raises:
        ArchitectureError: something is no architecture of the model.
        RunFolderError: it is the winner, and there is none yet.
    """
    layout, genes = opened.space.layout, asked.genes
    if asked.architectures is not None and genes is not None:
        raise ArchitectureError("Architectures must come in one form, but this request has both; leave one out.")
    if genes is None:
        records = [_record(each) for each in asked.architectures or ()] or [_winner(opened)]
        for each in records:
            each.check(layout)
        found = genes_of(records)
    else:
        found = read_genes(layout, genes)
    for change in asked.changes:
        if change.layer >= layout.layers:
            raise ArchitectureError(
                f"A change must be in a layer of 0 to {layout.layers - 1}, but is in {change.layer}; choose another."
            )
        found[:, change.layer, GENES.index(change.gene)] = change.value
    return read_genes(layout, found) if asked.changes else found


def _winner(opened: Opened) -> Architecture:
    if opened.winner is None:
        raise RunFolderError("A run must be finished for its winner to be asked about; give architectures.")
    return opened.winner


def _record(told: ArchitectureTold) -> Architecture:
    return Architecture.from_dict(told.model_dump())


@router.post("/damages", responses=_REFUSALS)
async def damages(
    service: Served, run: Run, architecture: Annotated[ArchitectureTold | None, Body()] = None
) -> dict[str, list[list[float]]]:
    """Say what each layer's attention and MLP add to what an architecture loses; without one, to the winner's."""
    opened = await service.oracle.open(run)
    asked = _winner(opened) if architecture is None else _record(architecture)
    asked.check(opened.space.layout)
    return {"damages": (await service.oracle.damages(run, asked)).tolist()}
