"""Studies of calibration: which text a model is best calibrated on."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Path
from fastapi.responses import HTMLResponse

from search.service.answers import Refused
from search.service.api.runs import sent_page
from search.service.state import Served

router = APIRouter(prefix="/api/studies", tags=["studies"])
Name = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$", description="Name of a study.")]
_MISSING: dict[int | str, dict[str, Any]] = {404: {"model": Refused, "description": "There is no such study."}}


@router.get("")
async def studies(service: Served) -> list[str]:
    """Return the names of all finished studies, the newest first."""
    return await asyncio.to_thread(service.gate.studies)


@router.get("/{study}/report", response_class=HTMLResponse, responses=_MISSING)
async def report(service: Served, study: Name) -> HTMLResponse:
    """Return what a study found, one page that opens anywhere."""
    if study not in await asyncio.to_thread(service.gate.studies):
        raise HTTPException(404, f"A study must be finished to be shown, but {study!r} is not; see GET /api/studies.")
    return await asyncio.to_thread(sent_page, service.gate.study(study) / "study.html")
