import json

import pandas as pd
import pytest

from predictor import AccuracyPredictor, Target, pairs_of_table, read_table
from space import GENES, PredictorError
from tests.predictor.synthetic import DENSE, draw, measure
from tests.space.layouts import SMOLLM2_135M


def table_of(architectures, values, name="accuracy"):
    rows = [
        {f"{i}.{gene}": getattr(layer, gene) for i, layer in enumerate(each.layers) for gene in GENES} | {name: value}
        for each, value in zip(architectures, values, strict=True)
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_pairs_measured_elsewhere_fit(tmp_path, suffix):
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    architectures = draw(60, 1)
    accuracies = [0.6 - 0.1 * value for value in measure(architectures, 0)]
    table = table_of(architectures, accuracies)
    file = tmp_path / f"pairs.{suffix}"
    table.to_csv(file, index=False) if suffix == "csv" else table.to_parquet(file)
    found, values = pairs_of_table(read_table(file), SMOLLM2_135M, "accuracy")
    assert found == architectures
    assert values == pytest.approx(accuracies)
    predictor = AccuracyPredictor.fit(SMOLLM2_135M, found, values, target=Target("accuracy", 0.6))
    assert 0.3 < predictor.predict(architectures[:1]).value[0] < 0.6


def test_what_has_no_column_is_dense():
    found, values = pairs_of_table(pd.DataFrame({"3.mlp_width": [768.0], "kl": [1]}), SMOLLM2_135M, "kl")
    assert found == [DENSE.replace(3, mlp_width=768)]
    assert values == [1.0]


def test_architectures_may_be_json():
    asked = draw(3, 2)
    table = pd.DataFrame({"architecture": [each.to_json() for each in asked], "kl": [0.1, 0.2, 0.3]})
    assert pairs_of_table(table, SMOLLM2_135M, "kl")[0] == asked


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"3.mlp_width": [768]}, "has no 'kl' among 3.mlp_width; name another"),
        ({"kl": [0.1]}, "neither columns like 3.mlp_width nor one named architecture"),
        ({"30.mlp_width": [768], "kl": [0.1]}, "layer of 0 to 29 .* but one is '30.mlp_width'"),
        ({"3.width": [768], "kl": [0.1]}, "but one is '3.width'; rename"),
        ({"3.mlp_width": [9999], "kl": [0.1]}, "Row 0 .* is not: mlp_width"),
        ({"3.mlp_width": [768.5], "kl": [0.1]}, "Row 0 .* whole number"),
        ({"3.mlp_width": ["wide"], "kl": [0.1]}, "Row 0 .* could not convert"),
        ({"3.mlp_width": [768], "kl": ["low"]}, "must be numbers, but 'kl' is not"),
        ({"architecture": [json.dumps({"layers": []})], "kl": [0.1]}, "Row 0"),
    ],
)
def test_a_table_that_says_something_else_is_refused(columns, message):
    with pytest.raises(PredictorError, match=message):
        pairs_of_table(pd.DataFrame(columns), SMOLLM2_135M, "kl")


def test_a_file_that_is_no_table_is_refused(tmp_path):
    with pytest.raises(PredictorError, match="CSV or Parquet"):
        read_table(tmp_path / "nowhere.csv")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(PredictorError, match="CSV or Parquet"):
        read_table(tmp_path / "empty.csv")
