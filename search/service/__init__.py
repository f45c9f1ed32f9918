"""The service: searches queued over HTTP, worked on by processes of their own, watched and asked on a page.

    page, API -> queue -> worker (one for each slot) -> job (a command of `secateur`, in a process of its own)

A job is what a person would type: the service checks what is asked, writes it as commands and keeps them in DBOS's
queue. The web process loads no torch; a worker loads next to nothing; what a job needs goes with its process. Whatever
is killed, the commands go on from their run folders when the next worker takes the job up.

The web process holds the pipe that a worker lives by, and the worker the one of its job: however a process dies, what
it has begun ends with it, so that no job is ever worked on twice at once.
"""
