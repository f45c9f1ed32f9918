"""Exports of a run: listed, and downloaded as an archive that is written as it is sent."""

import asyncio
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException
from fastapi import Path as PathParameter
from fastapi.responses import StreamingResponse

from search.export.place import MARK
from search.folder import RunFolder
from search.service.answers import ExportTold, Refused
from search.service.archive import tar_of
from search.service.state import Run

router = APIRouter(prefix="/api/runs/{run}/exports", tags=["exports"])
_TAR: dict[int | str, dict[str, Any]] = {200: {"content": {"application/x-tar": {}}}}
_MISSING: dict[int | str, dict[str, Any]] = {
    404: {"model": Refused, "description": "There is no such run or export."},
    409: {"model": Refused, "description": "An export's record is damaged."},
}
Name = Annotated[str, PathParameter(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$", description="Name of an export.")]


@router.get("", responses=_MISSING)
async def exports(run: Run) -> list[ExportTold]:
    """Return the exports of a run: the winner's, other members' of its Pareto set, and recovered models."""
    return await asyncio.to_thread(lambda: [_told(run, folder) for folder in _exports(run)])


@router.get("/{name}/archive", responses={**_MISSING, **_TAR}, response_class=StreamingResponse)
async def archive(run: Run, name: Name) -> StreamingResponse:
    """Download an export as a tar archive."""
    folder = next((each for each in _exports(run) if each.name == name), None)
    if folder is None:
        raise HTTPException(
            404, f"An export must be there to be downloaded, but {name!r} is not; see the run's exports."
        )
    file = f'attachment; filename="{run.path.name}-{name}.tar"'
    top = f"{run.path.name}-{name}"
    return StreamingResponse(tar_of(folder, top), media_type="application/x-tar", headers={"content-disposition": file})


def _exports(run: RunFolder) -> list[Path]:
    marks = sorted(run.path.glob(f"*/{MARK}"))
    return [mark.parent for mark in marks if not mark.parent.is_symlink() and not mark.parent.name.startswith(".")]


def _told(run: RunFolder, folder: Path) -> ExportTold:
    record = run.read_json(folder / MARK)
    files = sorted(file for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
    return ExportTold(
        name=folder.name,
        format=str(record.get("format", "")),
        bytes=sum(file.stat().st_size for file in files),
        files=[str(file.relative_to(folder)) for file in files],
        recovered="recovery" in record,
    )
