"""Where a run's pairs and its study lie: two files of its folder, or one schema of a PostgreSQL database.

The settings name the environment variable that holds the database's URL, and the folder's `database.json` the schema.
So a password is nowhere in a run folder, and whoever reads one there needs to be told where its database is.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import optuna

from evaluator import Database, PairStore, drop_schema, reach, schema_name
from search.config import RunConfig
from search.folder import RunFolder, write_json
from search.study import STUDY, study_storage
from space import SettingError


def check_database(config: RunConfig) -> None:
    """Check that the database of a run, if it is to have one, can be reached.

    Raises:
        SettingError: its environment variable is not set or holds no URL, or psycopg is not installed.
        RunFolderError: it cannot be reached.
    """
    if config.database is not None:
        reach(Database.parse(_url(config.database), "public"))


def has_store(run: RunFolder) -> bool:
    """Return whether a run has begun to keep pairs."""
    return (run.measurements_file if run.config().database is None else run.database_file).exists()


def open_store(run: RunFolder) -> PairStore:
    """Open a run's store of pairs, made the first time.

    Args:
        run: a run folder with its settings.

    Raises:
        SettingError: the environment variable of its database is not set.
        RunFolderError: the store is damaged, or not where it was.
    """
    variable = run.config().database
    if variable is None:
        return PairStore(run.measurements_file)
    if run.database_file.exists():
        return PairStore(_database(run, variable), make=False)
    name = schema_name(run.path.name)
    store = PairStore(Database.parse(_url(variable), name))
    write_json(run.database_file, {"schema": name})
    return store


def study_place(run: RunFolder) -> Path | Database:
    """Return where the study of a run lies whose store has been opened."""
    if run.study_is_copied or not run.database_file.exists():
        return run.study_file
    variable = run.config().database
    return run.study_file if variable is None else _database(run, variable)


def forget_schema(run: RunFolder) -> None:
    """Take back the schema of a run that was refused before it measured anything, if there is one."""
    if run.database_file.exists() and (variable := run.config().database) is not None:
        drop_schema(_database(run, variable))
        run.database_file.unlink()


@contextmanager
def copied_study(run: RunFolder) -> Iterator[RunFolder]:
    """Yield the same folder with a study of its own, copied from this one's as far as it is, for a while."""
    with TemporaryDirectory(prefix="secateur-") as beside:
        other = RunFolder(run.path)
        other.study_file, other.study_is_copied = Path(beside) / run.study_file.name, True
        place = study_place(run)
        if isinstance(place, Database):
            _copy_study(place, other.study_file)
        elif place.exists():
            with closing(sqlite3.connect(place)) as source, closing(sqlite3.connect(other.study_file)) as copy:
                source.backup(copy)
        yield other


def _copy_study(database: Database, file: Path) -> None:
    source, copy = study_storage(database), study_storage(file)
    try:
        if any(study.study_name == STUDY for study in source.get_all_studies()):
            optuna.copy_study(from_study_name=STUDY, from_storage=source, to_storage=copy)
    finally:
        for storage in (source, copy):
            storage.remove_session()
            storage.engine.dispose()


def _database(run: RunFolder, variable: str) -> Database:
    return Database.parse(_url(variable), str(run.read_json(run.database_file).get("schema")))


def _url(variable: str) -> str:
    url = os.environ.get(variable)
    if not url:
        raise SettingError(
            f"The URL of a run's database must be in the environment variable {variable}, but that is not set; "
            f"export {variable}=postgresql://USER@HOST/NAME."
        )
    return url
