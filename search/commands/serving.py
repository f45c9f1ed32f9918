"""Commands of the service: `serve` and `dashboard`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import SecretStr, ValidationError

from search.commands.arguments import RunArgument, app
from search.folder import RunFolder
from space import SettingError

_INSTALL = "pip install 'secateur[service]'"
_RULES = {
    "run_database": "the name of an environment variable, which holds the URL",
    "name": "of 1 to 64 letters, digits, dots, dashes and underscores",
}


@app.command(epilog="Example: secateur serve --models ~/models --data ~/texts")
def serve(
    runs: Annotated[Path, typer.Option(help="Folder of the run folders.")] = Path("runs"),
    models: Annotated[
        list[Path] | None, typer.Option(help="Folder whose models may be opened, repeatable; built-in ones always may.")
    ] = None,
    data: Annotated[
        list[Path] | None, typer.Option(help="Folder whose texts, examples and tasks may be read, repeatable.")
    ] = None,
    hub: Annotated[bool, typer.Option("--hub", help="Allow models and data of the Hugging Face hub.")] = False,
    host: Annotated[
        str, typer.Option(help="Address to listen on; any other than this machine's own requires the token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="To listen on; 0 takes any that is free.", min=0, max=65535)] = 8765,
    slots: Annotated[int, typer.Option(help="Jobs at once, each in a process of its own.", min=1, max=64)] = 1,
    database: Annotated[
        str | None,
        typer.Option(
            envvar="SECATEUR_SERVICE_DATABASE",
            help="URL of PostgreSQL to keep the queue in; default SQLite among the runs. Give a URL with a password by "
            "the environment variable.",
            show_default=False,
        ),
    ] = None,
    run_database: Annotated[
        str | None,
        typer.Option(help="Environment variable with the URL of PostgreSQL to keep runs' pairs and studies in."),
    ] = None,
    dask: Annotated[
        str | None, typer.Option(help="Address of a Dask scheduler on whose workers runs measure, tcp://10.0.0.1:8786.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Of this service, where several share a database; default the machine's.")
    ] = None,
    token: Annotated[bool, typer.Option("--token", help="Require the token on this machine, too.")] = False,
    new_token: Annotated[bool, typer.Option("--new-token", help="Make a new token; the old one ends.")] = False,
) -> None:
    """Serve searches over HTTP: a queue of jobs, an API, and a page to watch them and ask the predictor."""
    try:
        from search.service.serve import serve as begin
    except ModuleNotFoundError as error:
        raise SettingError(f"A service needs {error.name}, which is not installed here; {_INSTALL}.") from None
    from search.service.settings import ServiceSettings

    given: dict[str, Any] = {"name": name} if name else {}
    try:
        settings = ServiceSettings(
            runs=runs,
            models=tuple(models or ()),
            data=tuple(data or ()),
            hub=hub,
            host=host,
            port=port,
            slots=slots,
            database=SecretStr(database) if database else None,
            token_required=token,
            run_database=run_database,
            dask=dask,
            **given,
        )
    except ValidationError as error:
        option = str(error.errors()[0]["loc"][0])
        # Not what was given: it may be a URL with a password.
        raise SettingError(
            f"--{option.replace('_', '-')} must be {_RULES[option]}, but what was given is not; correct it."
        ) from None
    begin(settings, new_token)


@app.command(epilog="Example: secateur dashboard runs/smollm2-135m-parameters-0.8")
def dashboard(
    folder: RunArgument,
    port: Annotated[int, typer.Option(help="On this machine alone.", min=1, max=65535)] = 8766,
) -> None:
    """Show a run's Optuna study in optuna-dashboard, on a port of its own that only this machine reaches."""
    try:
        import optuna_dashboard
    except ModuleNotFoundError as error:
        raise SettingError(f"The dashboard needs {error.name}, which is not installed here; {_INSTALL}.") from None
    from search.database import has_store, study_place
    from search.study import study_storage

    run = RunFolder(folder)
    place = study_place(run) if has_store(run) else run.study_file
    if isinstance(place, Path) and not place.exists():
        raise SettingError(
            f"A run must have a study to show, but {str(folder)!r} has none yet; wait for its first round."
        )
    print(f"http://127.0.0.1:{port}/  (Ctrl-C ends it)", flush=True)
    optuna_dashboard.run_server(study_storage(place), host="127.0.0.1", port=port)
