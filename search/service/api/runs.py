"""Runs: what was searched, measured and found."""

import asyncio
import shutil
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from fastapi import Path as PathParameter
from fastapi.responses import HTMLResponse, Response

from search.folder import RunFolder
from search.service.answers import MeasuredTold, Refused, RunTold
from search.service.pairs import MEDIA, drop_pairs, pair_table, read_pairs, written
from search.service.runs import architecture_of, drawings, in_a_line, in_full, sliders
from search.service.state import Run, Served, Service
from space import RunFolderError

router = APIRouter(prefix="/api/runs", tags=["runs"])
_MISSING: dict[int | str, dict[str, Any]] = {404: {"model": Refused, "description": "There is no such run."}}
_NOT_YET: dict[int | str, dict[str, Any]] = {
    **_MISSING,
    409: {"model": Refused, "description": "The run has not come so far, or is damaged."},
}


@router.get("")
async def runs(service: Served, limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> list[RunTold]:
    """Return runs, the newest first, whether the service began them or a person did."""
    return await asyncio.to_thread(
        lambda: [in_a_line(RunFolder(service.gate.run(name))) for name in service.gate.runs()[:limit]]
    )


@router.get("/{run}", responses=_NOT_YET)
async def run_told(run: Run) -> dict[str, Any]:
    """Return what a run found: the content of its best.json, and the comparison in words."""
    return await asyncio.to_thread(in_full, run)


@router.delete("/{run}", status_code=204, responses=_NOT_YET)
async def delete(service: Served, run: Run) -> None:
    """Delete a run with all that it measured."""
    await asyncio.to_thread(_delete, service, run)


def _delete(service: Service, run: RunFolder) -> None:
    for job in service.queue.unfinished():
        if job.run == run.path.name:
            raise RunFolderError(
                f"A run to delete must have no job at work, but {run.path.name!r} has {job.id}; cancel it first."
            )
    with run.locked():  # nobody else works on it either, such as a command in a terminal
        aside = run.path.with_name(f".deleted-{run.path.name}")
        shutil.rmtree(aside, ignore_errors=True)  # of a deletion that was cut off
        drop_pairs(run)
        run.path.replace(aside)
    shutil.rmtree(aside)


@router.get("/{run}/sliders", responses=_NOT_YET)
async def slider_choices(run: Run) -> dict[str, Any]:
    """Return what each sub-block may keep, where the winner stands, and what the budgets allow."""
    return await asyncio.to_thread(sliders, run)


@router.get("/{run}/figures", responses=_NOT_YET)
async def figures(run: Run) -> dict[str, Any]:
    """Return the run's figures as Plotly's JSON, each with the sentence that stands for it where it is not seen."""
    return await asyncio.to_thread(drawings, run)


@router.get(
    "/{run}/pairs",
    responses={**_NOT_YET, 200: {"content": {kind.split(";")[0]: {} for kind in MEDIA.values()}}},
    response_class=Response,
)
async def pairs(run: Run, form: Annotated[Literal["csv", "parquet"], Query(alias="format")] = "csv") -> Response:
    """Return all that a run measured on its search text: architectures, costs, losses; `secateur fit` reads it."""

    def read() -> bytes:
        return written(pair_table(read_pairs(run), run.search_space()), form)

    name = f'attachment; filename="{run.path.name}-pairs.{form}"'
    return Response(await asyncio.to_thread(read), media_type=MEDIA[form], headers={"content-disposition": name})


@router.get("/{run}/pairs/{fingerprint}", responses=_NOT_YET)
async def pair(run: Run, fingerprint: Annotated[str, PathParameter(pattern="^[0-9a-f]{16}$")]) -> MeasuredTold:
    """Return a measured architecture by its fingerprint."""
    return MeasuredTold(**await asyncio.to_thread(architecture_of, run, fingerprint))


@router.get("/{run}/pareto", responses=_NOT_YET)
async def pareto(run: Run) -> dict[str, Any]:
    """Return the Pareto set of a run that searched against costs."""
    best = await asyncio.to_thread(run.best)
    if not best.get("pareto"):
        raise RunFolderError("A run must search against costs to have a Pareto set, but this one did not; see pairs.")
    found: dict[str, Any] = best["pareto"]
    return found


_REPORT_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
    "sandbox allow-scripts"
)


@router.get("/{run}/report", response_class=HTMLResponse, responses=_NOT_YET)
async def report(run: Run) -> HTMLResponse:
    """Return a finished run's report, one page that opens anywhere."""
    if not run.report_file.exists():
        raise RunFolderError(f"A run must be finished to have a report, but {run.path.name!r} is not; wait for it.")
    return await asyncio.to_thread(sent_page, run.report_file)


def sent_page(file: Path) -> HTMLResponse:
    """Return a page that holds its scripts and its data, which may ask for nothing."""
    return HTMLResponse(file.read_text(encoding="utf-8"), headers={"content-security-policy": _REPORT_POLICY})
