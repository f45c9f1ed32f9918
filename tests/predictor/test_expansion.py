"""An expansion is right about a quadratic model near where it was taken, and says where it does not know."""

from dataclasses import replace

import numpy as np
import pytest

from predictor import AccuracyPredictor, AdditivePrior, Expansion, Target
from predictor.expansion import LEAST_SHARE, Surroundings, surroundings
from space import Architecture, Budget, Layout, PredictorError, build_space, genes_of, sample
from tests.predictor.synthetic import SINGLES, draw
from tests.space.layouts import SMOLLM2_135M

COLUMNS = 2 * SMOLLM2_135M.layers
DENSE = np.array([SMOLLM2_135M.kv_groups, SMOLLM2_135M.mlp_width] * SMOLLM2_135M.layers)


def hessian(seed: int = 0) -> np.ndarray:
    """What two sub-blocks, each lost whole, do together: neighbours strengthen or spare each other."""
    rng = np.random.default_rng(seed)
    scale = np.sqrt(rng.uniform(0.02, 0.3, COLUMNS))
    away = np.abs(np.subtract.outer(np.arange(COLUMNS), np.arange(COLUMNS)))
    signs = rng.choice([-1.0, 1.0], COLUMNS)
    return np.outer(scale * signs, scale * signs) * 0.9**away


def lost(architectures) -> np.ndarray:
    """The share (architectures, 2 * layers) that each sub-block has lost."""
    return 1 - genes_of(architectures)[:, :, [0, 2]].reshape(-1, COLUMNS) / DENSE


def truth(architectures, matrix) -> np.ndarray:
    """A damage that is quadratic in what is lost, as KL nearly is, times a power that widths have."""
    gone = lost(architectures) ** (5 / 6)
    return np.einsum("ai,ij,aj->a", gone, matrix, gone)


def expansion_at(architecture, matrix) -> Expansion:
    """The expansion from the truth's own gradient."""
    own = (lost([architecture]) ** (5 / 6))[0]
    gradient = 2 * matrix @ own
    widths = [
        [(float(width), float(gradient[j] * ((1 - width / DENSE[j]) ** (5 / 6) - own[j]))) for width in told]
        for j, told in enumerate([(0, 1, 2, 3), (0, 512, 1024, 1280, 1408, 1536)] * SMOLLM2_135M.layers)
    ]
    value = float(truth([architecture], matrix)[0])
    return Expansion(SMOLLM2_135M, architecture, value, tuple(map(tuple, widths)), ((),) * COLUMNS)


def near(architecture, count, seed, changes=3):
    """Architectures with a few sub-blocks of a given one changed."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        other = architecture
        for layer in rng.permutation(SMOLLM2_135M.layers)[:changes].tolist():
            width = min(1536, max(512, other.layers[layer].mlp_width + int(rng.choice([-256, 256]))))
            other = other.replace(layer, mlp_width=width)
        found.append(other)
    return found


def test_it_knows_what_sub_blocks_do_together():
    matrix = hessian()
    prior = AdditivePrior.from_pairs(SMOLLM2_135M, SINGLES, truth(SINGLES, matrix).tolist())
    [centre] = draw(1, 0)
    others = near(centre, 40, 1)
    terms, genes = prior.terms(genes_of(others)), genes_of(others)
    told, distance = expansion_at(centre, matrix).expand(prior, genes, terms)
    value = truth(others, matrix)
    moved = value - truth([centre], matrix)
    additive = terms.sum(axis=1) - prior.terms(genes_of([centre])).sum()
    assert np.corrcoef(told, value)[0, 1] > 0.9 > np.corrcoef(additive, moved)[0, 1] + 0.2
    assert 0 < distance.min() < distance.max() < 1


def test_at_its_own_place_it_is_exact_and_far_away_bounded():
    matrix = hessian()
    prior = AdditivePrior.from_pairs(SMOLLM2_135M, SINGLES, truth(SINGLES, matrix).tolist())
    first, second = draw(2, 3)
    expansions = [expansion_at(each, matrix) for each in (first, second)]
    asked = [first, second, Architecture.dense(SMOLLM2_135M).replace(0, mlp_width=1408)]
    terms = prior.terms(genes_of(asked))
    found = surroundings(expansions, prior, genes_of(asked), terms)
    assert found[:2, 1].tolist() == [0.0, 0.0]
    told = np.exp(found[:2, 0]) * terms[:2].sum(axis=1)
    np.testing.assert_allclose(told, truth([first, second], matrix), rtol=0.02)
    assert found[2, 0] >= np.log(LEAST_SHARE)


def test_its_parts_add_up():
    matrix = hessian()
    prior = AdditivePrior.from_pairs(SMOLLM2_135M, SINGLES, truth(SINGLES, matrix).tolist())
    [centre] = draw(1, 0)
    genes = genes_of(near(centre, 20, 1))
    terms = prior.terms(genes)
    expansion = expansion_at(centre, matrix)
    first, second = expansion.parts(prior, genes, terms)
    assert first.shape == second.shape == (20, COLUMNS)
    assert (second >= 0).all()
    told, _ = expansion.expand(prior, genes, terms)
    np.testing.assert_allclose(told, expansion.damage + (first + second).sum(axis=1))


def test_a_fit_keeps_the_expansion_at_the_best_where_others_mislead():
    matrix = hessian()
    centre, elsewhere = draw(2, 0)
    close = near(centre, 60, 2, 8)
    best = expansion_at(centre, matrix)
    wrong = expansion_at(elsewhere, matrix)
    rng = np.random.default_rng(0)
    lying = tuple(tuple((w, float(rng.normal(0, 0.2))) for w, _ in own) for own in wrong.widths)
    # As close to the pairs as the best one, and of a larger damage.
    wrong = replace(best, damage=1.5 * best.damage, widths=lying)
    train = SINGLES + close
    for expansions, kept in (([best], [best]), ([wrong, best], [best]), ([wrong], [])):
        found = AccuracyPredictor.fit(SMOLLM2_135M, train, truth(train, matrix).tolist(), expansions=expansions)
        assert list(found.expansions) == kept


def test_what_no_slope_is_told_of_is_the_priors():
    matrix = hessian()
    prior = AdditivePrior.from_pairs(SMOLLM2_135M, SINGLES, truth(SINGLES, matrix).tolist())
    [centre] = draw(1, 0)
    untold = Expansion(SMOLLM2_135M, centre, 0.5, ((),) * COLUMNS, ((),) * COLUMNS)
    others = near(centre, 5, 1)
    terms = prior.terms(genes_of(others))
    told, _ = untold.expand(prior, genes_of(others), terms)
    np.testing.assert_allclose(told, 0.5 + terms.sum(axis=1) - prior.terms(genes_of([centre])).sum())


def test_sparsities_have_lines_of_their_own():
    layout = SMOLLM2_135M
    dense = Architecture.dense(layout)
    singles = [dense.replace(i, mlp_sparsity=s) for i in range(layout.layers) for s in (0.5, 0.7)]
    prior = AdditivePrior.from_pairs(layout, singles, [0.1, 0.2] * layout.layers)
    centre = dense.replace(0, mlp_sparsity=0.5)
    lines = [()] * COLUMNS
    lines[1] = ((0.0, -0.1), (0.5, 0.0), (0.7, 0.05))
    lines[3] = ((0.0, 0.0), (0.7, 0.4))
    expansion = Expansion(layout, centre, 0.1, ((),) * COLUMNS, tuple(lines))
    asked = [centre, centre.replace(0, mlp_sparsity=0.6), centre.replace(1, mlp_sparsity=0.7)]
    terms = prior.terms(genes_of(asked))
    told, _ = expansion.expand(prior, genes_of(asked), terms)
    own = prior.terms(genes_of([centre]))
    expected = [0.1, 0.1 + 0.025 + (terms[1] - own).sum(), 0.1 + 0.4 + (terms[2] - own).sum()]
    np.testing.assert_allclose(told, expected)


def by_hand(expansion, prior, genes):
    """The expanded damage and the distance of one architecture, sub-block by sub-block."""
    terms, own = prior.terms(genes[None])[0], prior.terms(expansion.genes)[0]
    damage = expansion.damage
    pairs = zip(genes.reshape(-1, 2), expansion.genes[0].reshape(-1, 2), strict=True)
    for column, ((width, sparsity), (own_width, own_sparsity)) in enumerate(pairs):
        differ = terms[column] - own[column]
        changes = [0.0]
        if width != own_width:
            changes.append(along(width, expansion.widths[column]))
        if sparsity != own_sparsity and width > 0:
            changes.append(along(sparsity, expansion.sparsities[column]))
        damage += differ if None in changes else sum(changes) + abs(differ)
    return damage, np.abs(terms - own).sum() / expansion.damage


def along(place, knots):
    told = dict(knots)
    return (
        float(np.interp(place, sorted(told), [told[x] for x in sorted(told)]))
        if (told and min(told) <= place <= max(told))
        else None
    )


@pytest.mark.parametrize("blocks", [False, True], ids=["sums", "layers measured whole"])
def test_many_expansions_at_once_say_what_each_says(blocks):
    """Told of differing widths, one of none; architectures with sparsity, widths between, and layers removed whole."""
    rng = np.random.default_rng(0)
    space = build_space(SMOLLM2_135M, [Budget("nonzero_parameters", 0.5)], sparsities=(0.0, 0.5, 0.7), width_step=256)
    dense = Architecture.dense(SMOLLM2_135M)
    alone = [
        *SINGLES,
        *(dense.replace(i, **{gene: 0.7}) for i in range(30) for gene in ("mlp_sparsity", "attention_sparsity")),
        *(dense.replace(i, kv_groups=0, mlp_width=0) for i in range(0, 30 * blocks, 2)),
    ]
    prior = AdditivePrior.from_pairs(SMOLLM2_135M, alone, rng.uniform(0.05, 0.2, len(alone)).tolist())
    *centres, last = space.decode(sample(space, 4, rng))
    expansions = [Expansion(SMOLLM2_135M, last, 0.3, ((),) * COLUMNS, ((),) * COLUMNS)]
    for number, centre in enumerate(centres):
        told = [space.choices[0][number:], space.choices[1][2 * number :]] * SMOLLM2_135M.layers
        widths, levels = ([{getattr(o, name) for o in own} for own in told] for name in ("width", "sparsity"))
        slopes = [
            tuple(tuple((float(x), float(rng.normal(0, 0.02))) for x in own) for own in part)
            for part in (widths, levels)
        ]
        expansions.append(Expansion(SMOLLM2_135M, centre, 1.0 + number, *slopes))
    genes = space.genes(sample(space, 40, rng))
    genes[:20, ::3, 2] += 100 * ((genes[:20, ::3, 2] > 0) & (genes[:20, ::3, 2] < 1400))
    genes[:30, 4:9] = [0, 0, 0, 0]
    genes[30:34, 4:9] = [0, 0, 768, 0]  # the same attention removed, and its layer not
    genes = np.concatenate([genes, *(each.genes for each in expansions)])
    choices = prior.choices(genes)
    damages, distances = Surroundings(expansions, prior).expand(choices, prior.terms_of(choices))
    expected = [[by_hand(each, prior, row) for each in expansions] for row in genes]
    np.testing.assert_allclose(damages, [[damage for damage, _ in row] for row in expected], rtol=1e-10)
    np.testing.assert_allclose(distances, [[away for _, away in row] for row in expected], rtol=1e-10, atol=1e-14)
    few = prior.choices(genes[:2])
    np.testing.assert_allclose(Surroundings(expansions, prior).expand(few, prior.terms_of(few))[0], damages[:2])


def test_a_predictor_with_slopes_ranks_the_best_better():
    matrix = hessian()
    [centre] = draw(1, 0)
    train = SINGLES + draw(30, 1) + near(centre, 30, 2, 6)
    asked = near(centre, 60, 3, 6)
    value = truth(asked, matrix)
    noise = np.exp(0.002 * np.random.default_rng(0).standard_normal(len(train)))
    fits = [
        AccuracyPredictor.fit(SMOLLM2_135M, train, (truth(train, matrix) * noise).tolist(), expansions=expansions)
        for expansions in ([], [expansion_at(centre, matrix)])
    ]
    without, with_slopes = (np.abs(np.log(fit.predict(asked).value / value)).mean() for fit in fits)
    assert with_slopes < 0.8 * without
    assert fits[1].feature_names[4:6] == ("expansion", "distance")


def test_it_is_saved_with_the_predictor(tmp_path):
    matrix = hessian()
    [centre] = draw(1, 0)
    train = [*SINGLES, centre, *draw(30, 1)]
    fitted = AccuracyPredictor.fit(
        SMOLLM2_135M, train, truth(train, matrix).tolist(), expansions=[expansion_at(centre, matrix)]
    )
    fitted.save(tmp_path)
    again = AccuracyPredictor.load(tmp_path)
    asked = draw(10, 5)
    np.testing.assert_array_equal(again.predict(asked).value, fitted.predict(asked).value)
    assert fitted.quality.pairs == 31


def test_the_pair_it_was_taken_at_does_not_count_for_the_quality():
    matrix = hessian()
    train = SINGLES + draw(30, 1)
    value = truth(train, matrix)
    every = [expansion_at(each, matrix) for each in train[len(SINGLES) : len(SINGLES) + 25]]
    fitted = AccuracyPredictor.fit(SMOLLM2_135M, train, value.tolist(), expansions=every)
    judged = [each.fingerprint for each in train[len(SINGLES) + 25 :]]
    measured = dict(zip((each.fingerprint for each in train), value.tolist(), strict=True))
    assert set(fitted.held_out) == set(judged)
    errors = [np.log(fitted.held_out[name][0] / measured[name]) for name in judged]
    assert fitted.quality.rmse_log == pytest.approx(np.sqrt(np.mean(np.square(errors))))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"damage": 0.0}, "damage above 0"),
        ({"damage": float("nan")}, "finite"),
        ({"widths": ((),)}, "60 sub-blocks"),
        ({"widths": (((1.0, float("inf")),),) * COLUMNS}, "finite"),
    ],
)
def test_what_is_no_expansion_is_refused(changes, message):
    values = {"damage": 0.5, "widths": ((),) * COLUMNS, "sparsities": ((),) * COLUMNS} | changes
    with pytest.raises(PredictorError, match=message):
        Expansion(SMOLLM2_135M, Architecture.dense(SMOLLM2_135M).replace(0, mlp_width=512), **values)


def test_scores_and_other_models_have_none():
    matrix = hessian()
    train = SINGLES + draw(30, 1)
    values = truth(train, matrix)
    expansion = expansion_at(train[-1], matrix)
    with pytest.raises(PredictorError, match="learned by its logarithm"):
        AccuracyPredictor.fit(
            SMOLLM2_135M, train, (0.6 - values).tolist(), target=Target("accuracy", 0.6), expansions=[expansion]
        )
    other = Layout.from_dict({**SMOLLM2_135M.to_dict(), "vocabulary": 1000})
    with pytest.raises(PredictorError, match="another"):
        AccuracyPredictor.fit(other, train, values.tolist(), expansions=[expansion])


def test_slopes_that_mislead_are_left_out():
    matrix = hessian()
    [centre] = draw(1, 0)
    train = SINGLES + draw(30, 1) + near(centre, 30, 2, 6)
    right = expansion_at(centre, matrix)
    chance = np.random.default_rng(0)
    wrong = replace(right, widths=tuple(tuple((w, 0.1 * chance.normal()) for w, _ in own) for own in right.widths))
    values = truth(train, matrix).tolist()
    kept, left = (AccuracyPredictor.fit(SMOLLM2_135M, train, values, expansions=[each]) for each in (right, wrong))
    assert kept.expansions == (right,)
    assert left.expansions == ()
    assert left.predict(train[-5:]).value == pytest.approx(truth(train[-5:], matrix), rel=0.05)
