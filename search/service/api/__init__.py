"""The routes of the API, by what they are about; every one documents itself in /openapi.json."""

from search.service.api import asking, exports, jobs, runs, studies, system

# What is asked most comes first: a request is held against one route after the other.
ROUTERS = (asking.router, jobs.router, runs.router, exports.router, studies.router, system.router)

__all__ = ["ROUTERS"]
