"""What an operator sets of a service, each default with its reason."""

import socket
from ipaddress import ip_address
from pathlib import Path

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict, Field, SecretStr

# Holds some thousand architectures, which are parsed in a tenth of a second; all others wait meanwhile.
_MOST_BODY_BYTES = 4 << 20


class ServiceSettings(BaseModel):
    """Where a service finds and leaves things, whom it answers, and how much it takes on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    runs: Path = Path("runs")  # the same folder that `secateur run` uses, so that both see the same runs
    models: tuple[Path, ...] = ()  # folders whose models may be opened, beside the built-in ones
    data: tuple[Path, ...] = ()  # folders whose texts, examples and tasks may be read
    hub: bool = False  # whether models and data of the Hugging Face hub may be named
    host: str = "127.0.0.1"  # this machine alone; any other address requires a token
    port: int = Field(8765, ge=0, le=65535)
    slots: int = Field(1, ge=1, le=64)  # jobs at once: each takes all the cores that torch finds
    # DBOS's database; None takes SQLite in the runs' folder. It may hold a password, so it is shown nowhere.
    database: SecretStr | None = None
    # Where runs keep pairs and studies, and where they measure: not for requests to say, which would reach any machine.
    run_database: str | None = Field(None, pattern="^[A-Za-z_][A-Za-z0-9_]*$")  # environment variable with the URL
    dask: str | None = None  # address of a scheduler
    # Of the workers, which take up their own jobs after a crash: two services on one database need two.
    name: str = Field(default_factory=socket.gethostname, pattern=r"^[A-Za-z0-9._-]{1,64}$")
    token_required: bool = False  # on this machine, too
    most_body_bytes: int = Field(_MOST_BODY_BYTES, ge=1024)
    requests_per_second: float = Field(3000.0, gt=0)  # of one client: three times what a page of sliders can ask
    submissions_per_minute: float = Field(120.0, gt=0)  # of one client, jobs and what else starts work
    most_unfinished: int = Field(1000, ge=1)  # jobs

    @property
    def home(self) -> Path:
        """The folder of what belongs to the service and to no run."""
        return self.runs / ".service"

    @property
    def database_url(self) -> str:
        """Where DBOS keeps the jobs; not to be shown."""
        if self.database is not None:
            url = sa.make_url(self.database.get_secret_value())
            if url.drivername == "postgres":  # as hosts of databases write it
                url = url.set(drivername="postgresql")
            # Else a database in the C locale answers in bytes.
            told = url.update_query_dict({"client_encoding": "utf8", **url.query})
            return told.render_as_string(hide_password=False)
        return f"sqlite:///{(self.home / 'jobs.db').absolute()}"

    @property
    def is_local(self) -> bool:
        """Whether only processes of this machine can reach the service."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def needs_token(self) -> bool:
        """Whether requests must carry the token."""
        return self.token_required or not self.is_local
