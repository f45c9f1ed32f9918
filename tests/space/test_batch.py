"""Arrays of genes say the same as the records that they stand for."""

import json

import numpy as np
import pytest

from space import (
    GENES,
    Architecture,
    ArchitectureError,
    Budget,
    DistinctChoices,
    LayerArchitecture,
    build_space,
    check_indices,
    costs_of_genes,
    encode_genes,
    genes_of,
    read_genes,
    sample,
)
from tests.space.layouts import PICO, SMOLLM2_135M
from tests.space.timings import made_up

SPARSE = build_space(SMOLLM2_135M, [Budget("nonzero_parameters", 0.6)], sparsities=(0.0, 0.5, 0.75))
PLAIN = build_space(SMOLLM2_135M, [Budget("parameters", 0.8)])
TIMED = build_space(SMOLLM2_135M, [Budget("latency", 0.8)], latency=made_up(SMOLLM2_135M))
PICO_GENES = [[2, 0, 64, 0]] * PICO.layers


@pytest.mark.parametrize("space", [SPARSE, PLAIN, TIMED], ids=["sparse", "plain", "timed"])
@pytest.mark.parametrize("count", [1, 3, 300, 5000])  # each is looked up in another way
def test_genes_indices_and_costs_are_those_of_the_records(space, count):
    indices = sample(space, min(count, 300), np.random.default_rng(0))
    indices = indices[np.arange(count) % len(indices)]
    genes = space.genes(indices)
    encoded = encode_genes(space, genes)
    assert encoded.dtype == np.int16
    assert np.array_equal(encoded, indices)
    told = costs_of_genes(space, genes)
    assert np.array_equal(told, space.costs(indices))
    for row, architecture in enumerate(space.decode(indices[:20])):
        assert dict(zip(space.metrics, told[row].tolist(), strict=True)) == space.amounts(architecture)


@pytest.mark.parametrize("space", [SPARSE, PLAIN], ids=["sparse", "plain"])
@pytest.mark.parametrize("count", [0, 1, 2, 400])
def test_distinct_choices_are_all_there_and_once(space, count):
    genes = space.genes(sample(space, count, np.random.default_rng(1)))
    choices = DistinctChoices.of(SMOLLM2_135M, genes)
    sub_blocks = genes.reshape(count, space.columns, 2)
    assert np.array_equal(choices.widths[choices.at], sub_blocks[:, :, 0])
    assert np.array_equal(choices.sparsities[choices.at], sub_blocks[:, :, 1])
    assert np.array_equal(choices.columns[choices.at], np.tile(np.arange(space.columns), (count, 1)))
    assert len(set(choices)) == len(list(choices)) == len(choices.widths)
    gone = (genes[:, :, [0, 2]] == 0).all(axis=2)
    assert np.array_equal(choices.removed_layers, gone)


def test_costs_outside_of_the_space_are_told_as_well():
    genes = np.full((1, 30, 4), [2, 0.3, 1001, 0.0123])
    architecture = Architecture((LayerArchitecture(2, 1001, 0.3, 0.0123),) * 30)
    assert costs_of_genes(TIMED, genes)[0].tolist() == list(TIMED.amounts(architecture).values())


def test_lists_of_numbers_are_read_as_records_are():
    """Sparsities are rounded, and a removed sub-block has none."""
    rows = [[[2, 0.1 + 0.2, 64, 0.12345], [0, 0.5, 63, 0], [1, 0, 0, 0.7]], PICO_GENES]
    layers = [[dict(zip(GENES, layer, strict=True)) for layer in row] for row in rows]
    records = [Architecture.from_dict({"layers": row}) for row in layers]
    given = np.array(rows)
    assert np.array_equal(read_genes(PICO, json.loads(json.dumps(rows))), genes_of(records))
    assert np.array_equal(read_genes(PICO, given), genes_of(records))
    assert np.array_equal(given, np.array(rows))  # nothing of the caller's is changed
    assert read_genes(PICO, np.array([PICO_GENES], dtype=np.int16)).dtype == np.float64
    assert read_genes(PICO, []).shape == (0, 3, 4)
    assert encode_genes(build_space(PICO), read_genes(PICO, [])).shape == (0, 6)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (
            (1, 2, 2),
            65,
            "mlp_width must be a whole number between 0 and 64 in layer 2 of architecture 1, but is 65; the",
        ),
        ((1, 0, 0), -1, "kv_groups must be a whole number between 0 and 2 in layer 0 .*, but is -1; the nearest is 0"),
        ((0, 1, 2), 31.5, "mlp_width .* layer 1 of architecture 0, but is 31.5; the nearest is 32"),
        ((0, 1, 2), np.nan, "mlp_width .* but is nan; the nearest is 64"),
        ((0, 1, 0), np.inf, "kv_groups .* but is inf; the nearest is 2"),
        ((0, 1, 1), 1.0, "attention_sparsity must be at least 0 and below 1 in layer 1 of architecture 0, but is 1;"),
        ((0, 1, 3), -0.1, "mlp_sparsity must be at least 0 .* but is -0.1; remove a sub-block by a width of 0"),
        ((0, 1, 3), np.nan, "mlp_sparsity must be at least 0 .* but is nan"),
    ],
)
def test_the_first_gene_that_is_out_of_range_is_named(place, value, message):
    genes = np.array([PICO_GENES, PICO_GENES], dtype=float)
    genes[place] = value
    with pytest.raises(ArchitectureError, match=message):
        read_genes(PICO, genes)


@pytest.mark.parametrize(
    "values",
    [
        PICO_GENES,
        [PICO_GENES[:2]],
        [[[2, 0, 64]] * 3],
        [PICO_GENES, PICO_GENES[:2]],
        [[["2", 0, 64, 0]] * 3],
        [[[True, False, True, False]] * 3],
        [[[None, 0, 64, 0]] * 3],
        [[{"kv_groups": 2}] * 3],
        3,
    ],
)
def test_what_is_no_array_of_genes_is_refused(values):
    with pytest.raises(
        ArchitectureError, match=r"shape \(architectures, 3, 4\), in a layer kv_groups, .* one list of 3"
    ):
        read_genes(PICO, values)


def test_sparsities_are_rounded_as_those_of_records():
    fine = np.random.default_rng(0).integers(0, 100_000, 3000) / 100_000 - 1e-9 * np.arange(3000)
    fine = np.clip(np.concatenate([fine, np.arange(5, 99_900, 10) / 100_000]), 0, 0.99)
    genes = np.tile(np.array([PICO_GENES], dtype=float), (len(fine), 1, 1))
    genes[:, 1, 3] = fine
    assert read_genes(PICO, genes)[:, 1, 3].tolist() == [
        LayerArchitecture(1, 1, 0, x).mlp_sparsity for x in fine.tolist()
    ]


def test_genes_outside_of_the_space_are_refused_by_row():
    genes = PLAIN.genes(sample(PLAIN, 5000, np.random.default_rng(0)))
    genes[4321, 7, 2] = 700
    with pytest.raises(
        ArchitectureError, match=r"Architecture 4321 .*mlp_width .* layer 7, but is 700; the nearest are 6"
    ):
        encode_genes(PLAIN, genes)
    genes[17, 3, 1] = 0.5
    with pytest.raises(ArchitectureError, match=r"Architecture 17 .* sparsity of the attention in layer 3"):
        encode_genes(PLAIN, genes)


def test_indices_are_checked():
    space = build_space(PICO)
    rows = [[0, 1, 2, 3, 0, 8], [1, 0, 0, 0, 0, 0]]
    assert check_indices(space, rows).tolist() == rows
    assert check_indices(space, np.array(rows, dtype=np.uint8)).dtype == np.int16
    assert check_indices(space, []).shape == (0, 6)
    with pytest.raises(
        ArchitectureError, match="between 0 and 2 for the attention of layer 1, but is 3 in architecture 1"
    ):
        check_indices(space, [rows[0], [0, 0, 3, 0, 0, 0]])
    with pytest.raises(ArchitectureError, match="between 0 and 8 for the MLP of layer 0, but is -1 in architecture 0"):
        check_indices(space, [[0, -1, 0, 0, 0, 0]])
    for wrong in ([[0] * 5], [0] * 6, [[0.0] * 6], [[0] * 6, [0] * 5], [["a"] * 6], 3):
        with pytest.raises(ArchitectureError, match=r"whole numbers of shape \(architectures, 6\)"):
            check_indices(space, wrong)
