"""Slopes are the derivatives of what is measured, in every family and under every criterion."""

import pytest
import torch

from evaluator import open_model
from evaluator.accuracy import make_reference, score_tokens
from evaluator.pruning.structures import columns_of, oriented
from evaluator.slopes import slopes
from space import Architecture, Choice, Criterion, SearchSpace
from tests.evaluator.pieces import SLICING, logits_of, make_evaluator, make_surgeon
from tests.pico import PICOS, pico_tokens, save_pico_of

CRITERIA = [SLICING, Criterion(update="bias"), Criterion(update="least_squares", weights="sparsegpt")]
STEP = 0.004


@pytest.fixture(scope="module", params=PICOS)
def folder(request, tmp_path_factory):
    return save_pico_of(request.param, tmp_path_factory.mktemp("family"))


def size_of(layout, column):
    return layout.mlp_width if column % 2 else layout.kv_groups


def choices_of(layout, sparsities=(0.0,)):
    def options(dense):
        widths = sorted({max(1, dense // 2), dense - 1, dense} - {0})
        return (Choice(0), *(Choice(width, level) for width in widths for level in sparsities))

    return tuple(options(size_of(layout, column)) for column in range(2 * layout.layers))


def with_choice(architecture, column, choice):
    names = ("mlp_width", "mlp_sparsity") if column % 2 else ("kv_groups", "attention_sparsity")
    return architecture.replace(column // 2, **dict(zip(names, (choice.width, choice.sparsity), strict=True)))


def choice_in(architecture, column):
    layer = architecture.layers[column // 2]
    own = (layer.mlp_width, layer.mlp_sparsity) if column % 2 else (layer.kv_groups, layer.attention_sparsity)
    return Choice(*own)


def installed(surgeon, layers, architecture, column):
    """Copies of what a sub-block's projections are under an architecture, in the shape of the dense ones."""
    layout, family, choice = surgeon.layout, surgeon.family, choice_in(architecture, column)
    inner, reader = (
        ((family.gate, family.up), family.down)
        if column % 2
        else ((family.query, family.key, family.value), family.output)
    )
    dense = size_of(layout, column)
    surgeon.install(with_choice(architecture, column, Choice(choice.width or dense, choice.sparsity)))
    found = {}
    for path in dict.fromkeys(each for each in (*inner, reader) if each):
        module = layers[column // 2].get_submodule(path)
        weight, bias = oriented(module.weight.data, layout), module.bias
        if path != reader and choice.width not in (0, dense):
            continue  # only sliced, and what left is read no more
        if path == reader and choice.width not in (0, dense):
            kept = (surgeon.kept_channels if column % 2 else surgeon.kept_groups)(column // 2, choice.width)
            whole = torch.zeros_like(surgeon.dense_weight(column // 2, path))
            whole[:, columns_of(kept, whole.shape[1], dense)] = weight
            weight = whole
        gone = path == reader and choice.width == 0
        bias = torch.zeros(len(weight)) if bias is None else bias.data
        found[path] = tuple(part * 0 if gone else part.clone() for part in (weight, bias))
    return found


def derivative(dense, surgeon, reference, before, column, choice):
    """The change of the measured KL on the first hundredths of the way to another choice, both ways, extrapolated."""
    start = installed(surgeon, dense.layers, before, column)
    end = installed(surgeon, dense.layers, with_choice(before, column, choice), column)
    values = []
    for step in (STEP, -STEP):
        surgeon.install(with_choice(before, column, Choice(size_of(surgeon.layout, column))))
        modules = {path: dense.layers[column // 2].get_submodule(path) for path in start.keys() & end.keys()}
        own = {path: (module.weight.data, module.bias) for path, module in modules.items()}
        for path, module in modules.items():
            weight, bias = (a + step * (b - a) for a, b in zip(start[path], end[path], strict=True))
            module.weight.data = oriented(weight, surgeon.layout)
            module.bias = torch.nn.Parameter(bias, requires_grad=False)
        values.append(float(score_tokens(dense, reference).kl.double().mean()))
        for path, module in modules.items():
            module.weight.data, module.bias = own[path]
    surgeon.restore()
    return (values[0] - values[1]) / (2 * STEP)


@pytest.mark.parametrize("criterion", CRITERIA, ids=str)
def test_slopes_are_derivatives(folder, criterion):
    dense = open_model(str(folder), dtype="float32")
    for parameter in dense.model.parameters():
        parameter.data *= 1.5  # the sub-blocks of a random model hardly matter
    tokens = pico_tokens(3, 24, 2)
    surgeon, reference = make_surgeon(dense, criterion), make_reference(dense, tokens)
    layout, sparse = surgeon.layout, criterion.weights == "sparsegpt"
    choices = choices_of(layout, (0.0, 0.3, 0.5) if sparse else (0.0,))
    half = max(1, layout.kv_groups // 2)
    before = Architecture.dense(layout).replace(0, mlp_width=layout.mlp_width // 2).replace(3, mlp_width=0)
    before = before.replace(1, kv_groups=half).replace(2, kv_groups=0)
    found = slopes(dense, surgeon, reference, before, choices)
    close = 0.12 if layout.family == "opt" else 0.05  # its ReLUs have kinks within a step
    behind = "gemma" in layout.family  # normed behind its sub-blocks
    asked = [(1, Choice(layout.mlp_width)), (5, Choice(layout.mlp_width - 1)), (5, Choice(0)), (0, Choice(half))]
    asked += [(7, Choice(layout.mlp_width)), (2, Choice(0))]
    for column, choice in asked:
        expected = derivative(dense, surgeon, reference, before, column, choice)
        if behind and 0 in (choice.width, choice_in(before, column).width):
            assert choice.width not in dict(found.widths[column])
        else:
            told = dict(found.widths[column])[choice.width]
            assert told == pytest.approx(expected, rel=close, abs=1e-3), (column, choice)
    for column, choice in [(5, Choice(layout.mlp_width, 0.3)), (0, Choice(layout.kv_groups, 0.5))] if sparse else []:
        expected = derivative(dense, surgeon, reference, before, column, choice)
        assert dict(found.sparsities[column])[choice.sparsity] == pytest.approx(expected, rel=close, abs=1e-3)


def test_nothing_changes_nothing_and_the_dense_model_comes_back(folder):
    dense = open_model(str(folder), dtype="float32")
    before = logits_of(dense.model)
    surgeon, reference = make_surgeon(dense, Criterion(update="bias")), make_reference(dense, pico_tokens(2, 24, 2))
    architecture = Architecture.dense(surgeon.layout).replace(1, kv_groups=0, mlp_width=20)
    found = slopes(dense, surgeon, reference, architecture, choices_of(surgeon.layout))
    for column in range(2 * surgeon.layout.layers):
        width = choice_in(architecture, column).width
        assert dict(found.widths[column]).get(width, 0.0) == 0.0
    assert torch.equal(logits_of(dense.model), before)
    assert not any(parameter.requires_grad for parameter in dense.model.parameters())


def test_slopes_are_taken_once_and_cost_three_passes(pico, tmp_path, monkeypatch):
    judge = make_evaluator(pico, tmp_path)
    architecture = Architecture.dense(pico.layout).replace(1, mlp_width=20)
    space = SearchSpace(pico.layout, choices_of(pico.layout))
    steps: list[int] = []
    found = judge.slopes(architecture, space.choices, steps.append)
    [pair] = judge.measure([architecture], "search", "slopes")
    assert found.kl == pair.kl
    assert len(steps) == len(judge.texts.tokens["search"])
    assert judge.store.tokens_measured() == 4 * pair.tokens  # one for the pair
    monkeypatch.setattr("evaluator.evaluator.slopes_of", None)  # nobody asks again
    assert judge.slopes(architecture, space.choices) == found
    assert judge.store.slopes(pair.protocol) == [found]
