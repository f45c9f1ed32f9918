"""The routes of the page."""

import asyncio
import logging
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from fastapi.templating import Jinja2Templates
from plotly import __version__ as plotly_version
from plotly import offline

from search.figures import DARK
from search.folder import RunFolder
from search.service.answers import JobTold
from search.service.guard import COOKIE, SESSION_SECONDS, session_of
from search.service.runs import in_a_line
from search.service.state import Run, Served, Service
from search.service.telemetry import log

STATIC = Path(__file__).parent / "static"
_PLOTLY = Path(offline.__file__).parents[1] / "package_data" / "plotly.min.js"
_FOREVER = "public, max-age=31536000, immutable"

router = APIRouter(include_in_schema=False)
templates = Jinja2Templates(Path(__file__).parent / "templates")


def _version() -> str:
    """Return what changes when a script or a style does, so that browsers may keep them for good."""
    return str(max(int(file.stat().st_mtime) for file in STATIC.iterdir()))


def _rendered(request: Request, name: str, **told: Any) -> HTMLResponse:
    told |= {"version": _version(), "plotly": plotly_version}
    return templates.TemplateResponse(request, name, told, headers={"cache-control": "no-cache"})


def refused_page(request: Request, sentence: str, status: int) -> HTMLResponse | None:
    """Return a page that says why a page is not to be had; None where no person asked for one.

    Args:
        request: what was asked.
        sentence: the reason.
        status: of the answer.
    """
    if request.url.path.startswith("/api/") or "text/html" not in request.headers.get("accept", ""):
        return None
    page = _rendered(request, "refused.html", sentence=sentence, session=False)
    page.status_code = status
    return page


@router.get("/")
async def home(request: Request, service: Served) -> HTMLResponse:
    """Show runs and jobs, and a form for a new search."""
    told = await asyncio.to_thread(_home, service)
    return _rendered(request, "home.html", **told)


def _home(service: Service) -> dict[str, Any]:
    return {
        "runs": [in_a_line(RunFolder(service.gate.run(name))) for name in service.gate.runs()[:50]],
        "models": service.gate.models(),
        "data": service.gate.data(),
        "studies": service.gate.studies(),
        "session": service.settings.needs_token,
    }


@router.get("/runs/{run}")
async def run_page(request: Request, service: Served, run: Run) -> HTMLResponse:
    """Show a run."""
    told = await asyncio.to_thread(in_a_line, run)
    data = await asyncio.to_thread(service.gate.data)
    session = service.settings.needs_token
    return _rendered(request, "run.html", run=told, session=session, data=data, colours=DARK)


@router.get("/jobs/{job}")
async def job_page(request: Request, service: Served, job: str) -> HTMLResponse:
    """Show a job."""
    told = JobTold.of(await asyncio.to_thread(service.queue.get, job))
    return _rendered(request, "job.html", job=told, session=service.settings.needs_token)


@router.get("/docs")
async def documentation(request: Request, service: Served) -> HTMLResponse:
    """Show the routes of the API."""
    schema = request.app.openapi()
    return _rendered(request, "docs.html", paths=schema["paths"], session=service.settings.needs_token)


@router.get("/login")
async def login_page(request: Request) -> HTMLResponse:
    """Show the form that takes the token."""
    return _rendered(request, "login.html", wrong=False, session=False)


@router.post("/login")
async def login(request: Request, service: Served) -> Response:
    """Begin a session with the token that the form sends."""
    sent = parse_qs((await request.body()).decode(errors="replace"), max_num_fields=10)
    token = sent.get("token", [""])[0].strip()
    if not service.tokens.accepts(token):
        log("wrong token", logging.WARNING, id=request.state.request_id)
        await asyncio.sleep(1)  # whoever guesses waits
        page = _rendered(request, "login.html", wrong=True, session=False)
        page.status_code = 401
        return page
    answer = RedirectResponse("/", 303)
    secure = request.url.scheme == "https"
    session = service.tokens.begin()
    answer.set_cookie(COOKIE, session, SESSION_SECONDS, httponly=True, samesite="strict", secure=secure)
    return answer


@router.post("/logout")
async def logout(request: Request, service: Served) -> Response:
    """End the session."""
    if session := session_of(request.headers.get("cookie", "")):
        service.tokens.end(session)
    answer = RedirectResponse("/login", 303)
    answer.delete_cookie(COOKIE)
    return answer


@router.get("/plotly-{version}.js")
async def plotly_script(version: str) -> FileResponse:
    """Send plotly.js from the installed package, to be kept by browsers for good."""
    return FileResponse(_PLOTLY, media_type="text/javascript", headers={"cache-control": _FOREVER})
