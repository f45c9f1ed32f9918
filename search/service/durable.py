"""What the web process and its workers must know alike of DBOS, so that they meet in one queue."""

from dbos import DBOSPortableJSONSerializer

APPLICATION = "secateur"
# Of the form of a job, not of the program: a newer one goes on with jobs that an older one began.
VERSION = "jobs-1"
QUEUE = "jobs"
WORKFLOW = "job"
# DBOS's own choice is pickle, which runs whatever a database holds.
SERIALIZER = DBOSPortableJSONSerializer()
POLL_SECONDS = 0.5
