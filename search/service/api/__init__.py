"""The routes of the API, by what they are about; every one documents itself in /openapi.json."""

from search.service.api import asking, exports, jobs, runs, system

ROUTERS = (jobs.router, runs.router, asking.router, exports.router, system.router)

__all__ = ["ROUTERS"]
