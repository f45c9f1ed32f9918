"""A run in PostgreSQL finds what the same run in SQLite finds, and nothing of it tells the password."""

import json

import pytest
import sqlalchemy as sa

from evaluator import Database
from evaluator.database import connect
from search.another_budget import EARLIER
from search.config import load_config
from search.database import open_store, study_place
from search.folder import RunFolder
from search.join import join_search
from search.run import run_search
from search.session import refit
from search.study import STUDY, study_storage
from space import RunFolderError, SettingError
from tests.search.command import call, refusal
from tests.search.test_join import run_until
from tests.search.test_run import pairs_of

VARIABLE = "SECATEUR_TEST_DATABASE"


@pytest.fixture
def database(postgres, monkeypatch):
    """The name of the variable that holds the URL of a database."""
    monkeypatch.setenv(VARIABLE, postgres)
    return VARIABLE


def rows_of(folder):
    """The pairs as `pairs_of` gives those of a file."""
    store = open_store(RunFolder(folder))
    try:
        with store._engine.connect() as connection:
            query = sa.text("SELECT fingerprint, protocol, kl, nll, origin FROM pairs ORDER BY id")
            return [tuple(row) for row in connection.execute(query)]
    finally:
        store.close()


def test_a_run_that_is_stopped_joined_and_finished_in_postgresql_is_the_run_in_sqlite(
    small_config, finished_folder, tmp_path, monkeypatch, database, postgres, checked_here
):
    config, folder = load_config(small_config, {"database": database}), tmp_path / "run"
    run_until(monkeypatch, config, folder, 60)
    begun = len(rows_of(folder))
    assert join_search(folder) == len(pairs_of(finished_folder)) - begun
    run_search(config, folder)
    assert sorted(rows_of(folder)) == sorted(pairs_of(finished_folder))
    ours, alone = (json.loads((path / "best.json").read_text()) for path in (folder, finished_folder))
    for name in ("architecture", "predicted", "rounds"):
        assert ours[name] == alone[name]
    assert not (folder / "measurements.db").exists()
    assert not (folder / "study.db").exists()
    password = sa.make_url(postgres).password
    assert all(password.encode() not in file.read_bytes() for file in folder.rglob("*") if file.is_file())
    tables_are_where_they_belong(folder)
    assert refit(RunFolder(folder))["quality"] == ours["quality"]
    with monkeypatch.context() as patch:
        patch.delenv(VARIABLE)
        with pytest.raises(SettingError, match=rf"environment variable {VARIABLE}, but that is not set"):
            refit(RunFolder(folder))


def tables_are_where_they_belong(folder):
    """Ours and Optuna's lie in the run's schema, each with its own version, and nothing lies outside."""
    place = study_place(RunFolder(folder))
    assert isinstance(place, Database)
    storage = study_storage(place)
    try:
        inspector = sa.inspect(storage.engine)
        assert {"pairs", "secateur_version", "trials", "alembic_version"} <= set(
            inspector.get_table_names(place.schema)
        )
        assert inspector.get_table_names("public") == []
        assert [study.study_name for study in storage.get_all_studies()] == [STUDY]
    finally:
        storage.remove_session()
        storage.engine.dispose()


def test_another_budget_takes_the_pairs_from_a_file_into_a_database(
    finished_run, tmp_path, database, monkeypatch, capsys
):
    monkeypatch.setattr("search.commands.searching._run", lambda *_: None)
    out = tmp_path / "other"
    arguments = ("run", "--resume", finished_run, "--budget", "parameters=0.6", "--out", out, "--database", database)
    assert call(*arguments) == 0, capsys.readouterr().err
    before, after = pairs_of(finished_run), rows_of(out)
    assert [row[:4] for row in after] == [row[:4] for row in before]
    assert {row[4] for row in after} == {"prior", EARLIER}


def test_a_database_that_cannot_be_had_is_refused_before_anything_is_written(
    small_config, tmp_path, capsys, postgres, monkeypatch
):
    folder = tmp_path / "run"
    command = ("run", "--config", small_config, "--out", folder)
    assert call(*command, "--database", "postgresql://gardener:hunter2@127.0.0.1:1/garden") == 2
    told = refusal(capsys.readouterr().err)
    assert "must be within reach, but 127.0.0.1:1/garden is not" in told
    assert "hunter2" not in told
    assert call(*command, "--set", "database=postgresql://gardener:hunter2@127.0.0.1:1/garden") == 2
    told = refusal(capsys.readouterr().err)
    assert "must be the name of the environment variable" in told
    assert "hunter2" not in told
    assert call(*command, "--database", "NOT_THERE") == 2
    assert "environment variable NOT_THERE, but that is not set" in refusal(capsys.readouterr().err)
    assert not folder.exists()


def test_a_run_whose_database_is_another_by_now_does_not_begin_anew(
    small_config, tmp_path, database, monkeypatch, postgres
):
    config, folder = load_config(small_config, {"database": database}), tmp_path / "run"
    run_until(monkeypatch, config, folder, 3)
    engine = connect(Database.parse(postgres, "public")).execution_options(isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text("CREATE DATABASE another"))
    engine.dispose()
    monkeypatch.setenv(VARIABLE, postgres.rpartition("/")[0] + "/another")
    with pytest.raises(
        RunFolderError, match=r"another has no schema run_run_\w+; give the URL of the database that has"
    ):
        run_search(config, folder)
