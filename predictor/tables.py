"""Pairs measured elsewhere, as a table: one row for each architecture, one column for each gene and measured quantity.

Genes are named LAYER.GENE, as in `secateur predict --set`: 3.mlp_width. What has no column is dense. A column
`architecture` with the JSON of `secateur sample` may stand for them all.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from space import GENES, Architecture, ArchitectureError, LayerArchitecture, Layout, PredictorError

if TYPE_CHECKING:
    import pandas as pd

_WHOLE = ("kv_groups", "mlp_width")


def read_table(file: Path) -> "pd.DataFrame":
    """Return a CSV or Parquet file as a table.

    Raises:
        PredictorError: the file cannot be read.
    """
    import pandas as pd  # late: half a second, and no answer of a predictor needs it

    try:
        return pd.read_parquet(file) if file.suffix in (".parquet", ".pq") else pd.read_csv(file)
    except ImportError:
        raise PredictorError(
            f"Parquet must be read by pyarrow, but it is not installed; install it, or give {file.name} as CSV."
        ) from None
    except (OSError, ValueError) as error:
        raise PredictorError(
            f"A table of pairs must be a CSV or Parquet file, but {str(file)!r} cannot be read as one ({error}); "
            "check it."
        ) from None


def pairs_of_table(table: "pd.DataFrame", layout: Layout, value: str) -> tuple[list[Architecture], list[float]]:
    """Return the architectures of a table and their measured values.

    Args:
        table: as described above.
        layout: the dense model.
        value: name of the column of the measured quantity.

    Raises:
        PredictorError: a column is missing or unknown, or a row is no architecture of the model.
    """
    if value not in table.columns:
        raise PredictorError(
            f"A table of pairs must have a column of what was measured, but has no {value!r} among "
            f"{', '.join(map(str, table.columns[:8]))}; name another."
        )
    columns = _gene_columns(table, layout)
    rows = table.to_dict(orient="records")
    named = [{str(column): value for column, value in row.items()} for row in rows]
    architectures = [_architecture(number, row, columns, layout) for number, row in enumerate(named)]
    try:
        values = [float(each) for each in table[value]]
    except (TypeError, ValueError) as error:
        raise PredictorError(f"What was measured must be numbers, but {value!r} is not ({error}); check it.") from None
    return architectures, values


def _gene_columns(table: "pd.DataFrame", layout: Layout) -> dict[str, tuple[int, str]]:
    """Return layer and gene of each column that is one."""
    found = {}
    for column in map(str, table.columns):
        place, dot, gene = column.partition(".")
        if not (dot and place.isdigit()):
            continue
        if gene not in GENES or int(place) >= layout.layers:
            raise PredictorError(
                f"A gene's column must be LAYER.GENE with a layer of 0 to {layout.layers - 1} and a gene of "
                f"{', '.join(GENES)}, but one is {column!r}; rename or remove it."
            )
        found[column] = (int(place), gene)
    if not found and "architecture" not in table.columns:
        raise PredictorError(
            "A table of pairs must say what the architectures are, but has neither columns like 3.mlp_width nor one "
            "named architecture; add them."
        )
    return found


def _architecture(
    number: int, row: dict[str, object], columns: dict[str, tuple[int, str]], layout: Layout
) -> Architecture:
    try:
        if "architecture" in row:
            found = Architecture.from_json(str(row["architecture"]))
        else:
            genes: list[dict[str, float]] = [
                {"kv_groups": layout.kv_groups, "mlp_width": layout.mlp_width} for _ in range(layout.layers)
            ]
            for column, (layer, gene) in columns.items():
                value = float(str(row[column]))
                genes[layer][gene] = int(value) if gene in _WHOLE and value.is_integer() else value
            found = Architecture(tuple(LayerArchitecture(**each) for each in genes))  # type: ignore[arg-type]
            found = Architecture.from_dict(found.to_dict())
        found.check(layout)
    except (ArchitectureError, ValueError, TypeError) as error:
        raise PredictorError(f"Row {number} of a table of pairs must be an architecture, but is not: {error}") from None
    return found
