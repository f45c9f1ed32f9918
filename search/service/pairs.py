"""A run's measured pairs as the service tells them, read without torch.

The store belongs to `evaluator.store`, which comes with torch and half a gigabyte; here its tables are read as they
are, by names that a test holds against it.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import sqlalchemy as sa

from search.comparison import PairRow
from search.folder import RunFolder
from search.service.postgres import engine_of
from space import GENES, Architecture, RunFolderError, SearchSpace

_COLUMNS = (
    "fingerprint", "origin", "nll", "nll_standard_error", "kl", "kl_standard_error", "agreement", "tokens",
    "measured_at",
)  # fmt: skip
_PAIRS = sa.table("pairs", *map(sa.column, ("id", "protocol", *_COLUMNS)))
_PROTOCOLS = sa.table("protocols", sa.column("fingerprint"), sa.column("content"))
_ARCHITECTURES = sa.table("architectures", sa.column("fingerprint"), sa.column("content"))
_EARLIER = sa.table("pairs", sa.column("fingerprint"), sa.column("architecture"))  # before there was that table
MEDIA = {"csv": "text/csv; charset=utf-8", "parquet": "application/vnd.apache.parquet"}


def read_pairs(run: RunFolder) -> pd.DataFrame:
    """Return what a run measured on its search text, in the order it was measured.

    Args:
        run: the run.

    Returns:
        One row a pair; `architecture` is its JSON.

    Raises:
        RunFolderError: nothing was measured yet, or the store is damaged or cannot be reached.
    """
    with _opened(run) as connection:
        chosen = sa.select(*(_PAIRS.c[name] for name in _COLUMNS)).order_by(_PAIRS.c.id)
        found = pd.read_sql(chosen.where(_PAIRS.c.protocol == _search_protocol(connection)), connection)
        if _ARCHITECTURES.name in sa.inspect(connection).get_table_names():
            known = connection.execute(sa.select(_ARCHITECTURES)).all()
        else:
            known = connection.execute(sa.select(_EARLIER)).all()
    return found.assign(architecture=found["fingerprint"].map({each[0]: each[1] for each in known}))


def count_pairs(run: RunFolder) -> int:
    """Return how many pairs a run has measured on its search text so far; 0 where that cannot be told."""
    try:
        with _opened(run) as connection:
            counted = sa.select(sa.func.count()).select_from(_PAIRS)
            found: int = connection.execute(
                counted.where(_PAIRS.c.protocol == _search_protocol(connection))
            ).scalar_one()
            return found
    except RunFolderError:
        return 0


def drop_pairs(run: RunFolder) -> None:
    """Take a run's schema out of its database; what is in files goes with the folder.

    Raises:
        RunFolderError: the database cannot be reached.
    """
    if run.config().database is None or not run.database_file.exists():
        return
    schema = run.read_json(run.database_file)["schema"]
    with _opened(run) as connection:
        connection.execute(sa.schema.DropSchema(schema, cascade=True, if_exists=True))
        connection.commit()


def _search_protocol(connection: sa.Connection) -> str:
    found = connection.execute(sa.select(_PROTOCOLS)).all()
    return next((each.fingerprint for each in found if json.loads(each.content)["split"] == "search"), "")


@contextmanager
def _opened(run: RunFolder) -> Iterator[sa.Connection]:
    """Yield a connection to a run's store that only reads."""
    variable = run.config().database
    if not (run.measurements_file if variable is None else run.database_file).exists():
        raise RunFolderError(f"A run must have measured pairs, but {run.path.name!r} has none yet; wait for them.")
    engine = _engine(run, variable)
    try:
        with engine.connect() as connection:
            yield connection
    except (sa.exc.SQLAlchemyError, ValueError, KeyError) as error:
        raise RunFolderError(
            f"The pairs of a run must be intact and to be had, but those of {run.path.name!r} are not "
            f"({type(error).__name__}); restore them, or start their database."
        ) from error
    finally:
        engine.dispose()


def _engine(run: RunFolder, variable: str | None) -> sa.Engine:
    if variable is None:
        return sa.create_engine(f"sqlite:///file:{run.measurements_file.absolute()}?mode=ro&uri=true")
    url = os.environ.get(variable)
    if not url:
        raise RunFolderError(
            f"The URL of the database of {run.path.name!r} must be in the environment variable {variable}, but that is "
            "not set; start the service with it."
        )
    return engine_of(url, run.read_json(run.database_file)["schema"])


def pair_table(found: pd.DataFrame, space: SearchSpace) -> pd.DataFrame:
    """Return pairs with their costs and genes in columns of their own, as `secateur fit --pairs` reads them.

    Args:
        found: of `read_pairs`.
        space: of the run.
    """
    architectures = [Architecture.from_json(text) for text in found["architecture"]]
    costs = pd.DataFrame([space.amounts(each) for each in architectures], index=found.index)
    columns = [f"{layer}.{gene}" for layer in range(space.layout.layers) for gene in GENES]
    genes = [[getattr(layer, gene) for layer in each.layers for gene in GENES] for each in architectures]
    told = found.drop(columns="architecture").assign(perplexity=np.exp(found["nll"]))
    return pd.concat([told, costs, pd.DataFrame(genes, columns=columns, index=found.index)], axis=1)


def written(table: pd.DataFrame, form: str) -> bytes:
    """Return a table as a file of a form of `MEDIA`."""
    if form == "csv":
        return table.to_csv(index=False).encode()
    sink = BytesIO()
    table.to_parquet(sink, index=False)
    return sink.getvalue()


def pair_rows(found: pd.DataFrame, space: SearchSpace, held_out: Mapping[str, Any]) -> list[PairRow]:
    """Return pairs for figures, each with what was predicted of it by a model that had not seen it.

    Args:
        found: of `read_pairs`.
        space: of the run.
        held_out: by fingerprint, the prediction and the ends of its interval.
    """
    rows = []
    for each in found.assign(perplexity=np.exp(found["nll"])).to_dict("records"):
        architecture = Architecture.from_json(each["architecture"])
        told, lower, upper = held_out.get(each["fingerprint"], (None, None, None))
        rows.append(
            PairRow(
                fingerprint=each["fingerprint"],
                architecture=architecture,
                kind=each["origin"],
                cost=space.amounts(architecture),
                kl=each["kl"],
                kl_standard_error=each["kl_standard_error"],
                perplexity=each["perplexity"],
                predicted=told,
                lower=lower,
                upper=upper,
            )
        )
    return rows


def held_out_of(run: RunFolder) -> dict[str, Any]:
    """Return what cross-validation predicted of a run's pairs, by fingerprint; empty where that was not kept."""
    return run.read_json(run.held_out_file) if run.held_out_file.exists() else {}


def stamp_of(*files: Path) -> tuple[float, ...]:
    """Return what changes when files do."""
    return tuple(file.stat().st_mtime_ns if file.exists() else 0.0 for file in files)
