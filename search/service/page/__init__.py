"""The page: server-rendered, with a little plain JavaScript, and no request to any other host.

/            runs, jobs and a form for a new search
/runs/RUN    a run: figures, sliders, comparison, exports, a text to hear
/jobs/ID     a job: progress as it happens, its log, the command that it comes to
"""

from search.service.page.routes import STATIC, refused_page, router

__all__ = ["STATIC", "refused_page", "router"]
