"""Items as what a search measures on: losses that are 0 for the dense model and say how much of its answers is gone."""

import numpy as np
import pytest

pytest.importorskip("lm_eval", reason="needs the package `lm-eval`: pip install 'secateur[accuracy]'")

from evaluator import Evaluator, PairStore, Texts, open_model
from evaluator.harness.answers import less
from evaluator.harness.evaluation import answer, set_exams
from evaluator.harness.items import Aim, ItemReference, tokenised
from evaluator.harness.tasks import Asked
from evaluator.recovery.short import ShortRecipe
from evaluator.sources import tokenise
from space import Architecture, Criterion, SettingError

PRUNED = {"mlp_width": 60, "kv_groups": 2}


@pytest.fixture(scope="module")
def exams(data):
    return set_exams([Asked("piqa"), Asked("winogrande"), Asked("copa")], data / "tasks", limit=24, seed=1)


@pytest.fixture
def dense(stories):
    return open_model(str(stories), dtype="float32")


@pytest.fixture
def judge(dense, data, exams, tmp_path):
    tokens = tokenise(dense, str(data / "text" / "tinystories.txt"))[: 20 * 64].view(20, 64)
    texts = Texts(
        {"calibrate": tokens[:8], "search": tokens[8:12], "validate": tokens[12:16], "report": tokens[16:]},
        dict.fromkeys(("calibrate", "search", "validate", "report"), "stories"),
    )
    items = tokenised(dense, exams, "stories items")
    store = PairStore(tmp_path / "pairs.db")
    made = []

    def make(signal="margin", **more):
        def aim():
            made.append(signal)
            return Aim({"search": items, "validate": items}, signal, {})

        return Evaluator(dense, texts, store, criterion=Criterion("wanda", "wanda", "none"), aim=aim, **more)

    yield make
    assert len(made) <= 1
    store.close()


def pruned(dense, layers=2):
    architecture = Architecture.dense(dense.layout)
    for layer in range(layers):
        architecture = architecture.replace(layer, **PRUNED)
    return architecture


def test_tasks_weigh_the_same_whatever_they_hold(dense, data):
    exams = [
        *set_exams([Asked("piqa")], data / "tasks", limit=30),
        *set_exams([Asked("copa")], data / "tasks", limit=10),
    ]
    items = tokenised(dense, exams, "")
    assert len(items.choices) == 40
    assert items.weights[items.tasks == 0].sum() == pytest.approx(items.weights[items.tasks == 1].sum())
    assert items.weights.mean() == pytest.approx(1)


@pytest.mark.parametrize("signal", ["margin", "answers"])
def test_the_dense_model_has_lost_nothing(dense, exams, signal):
    items = tokenised(dense, exams, "")
    scores = ItemReference(dense, items, signal).scores(dense)
    assert scores.kl.tolist() == [0.0] * len(items.choices)


def test_losses_are_of_answers_as_the_harness_counts_them(judge, dense, exams, tmp_path):
    """Right answers that are right no more, against what the same two models answer through lm-eval."""
    evaluator, architecture = judge("answers"), pruned(dense, 5)
    [found] = evaluator.measure([architecture], "search", "test")
    model = evaluator.model_of(architecture)
    own = answer(model, exams, tmp_path)
    evaluator.surgeon.restore()
    theirs = answer(dense, exams, tmp_path)
    lost = [
        float(np.mean((before.values == 1) & (after.values == 0))) for before, after in zip(theirs, own, strict=True)
    ]
    assert found.kl == pytest.approx(np.mean(lost), abs=1e-6)
    assert 0 < found.kl < 1
    assert found.agreement == pytest.approx(np.mean([score.accuracy.value for score in own]), abs=1e-6)
    parts = [score.parts[0] for score in own]
    losses = [
        np.mean(
            [np.logaddexp.reduce(each) - each[gold] for each, gold in zip(part.loglikelihoods, part.gold, strict=True)]
        )
        for part in parts
    ]
    assert found.nll == pytest.approx(np.mean(losses), abs=1e-4)
    assert less(own[0], theirs[0]).value == pytest.approx(own[0].accuracy.value - theirs[0].accuracy.value)


def test_margins_tell_apart_what_answers_alike(judge, dense):
    evaluator = judge()
    little = Architecture.dense(dense.layout).replace(2, mlp_width=160)
    measured = evaluator.measure([little, pruned(dense), pruned(dense, 5)], "search", "test")
    assert 0 < measured[0].kl < measured[1].kl < measured[2].kl < 1
    assert all(found.kl_standard_error < found.kl for found in measured[1:])


def test_what_is_measured_on_items_is_kept_apart_and_counted(judge, dense, exams):
    evaluator = judge()
    architecture = pruned(dense)
    [found] = evaluator.measure([architecture], "search", "test")
    protocol = evaluator.protocol("search")
    assert protocol.text_source == "stories items"
    assert protocol.divergence == "probability of right answers lost"
    assert found.tokens == protocol.tokens == evaluator.work(architecture, "search") > 2000
    assert len(found.kl_blocks) == 72
    assert evaluator.protocol("report").divergence != protocol.divergence
    assert evaluator.protocol("search:1").text_source == "stories"
    [again] = evaluator.measure([architecture], "search", "test")
    assert again == found
    assert evaluator.measured == 1


def test_items_can_be_answered_after_a_short_recovery(judge, dense):
    recipe = ShortRecipe(steps=2, step_tokens=128)
    evaluator = judge(recovery=recipe)
    [found] = evaluator.measure([pruned(dense, 5)], "search", "test")
    assert evaluator.protocol("search").recovery == str(recipe)
    assert evaluator.work(pruned(dense), "search") > recipe.work
    assert found.kl > 0


def test_items_that_cannot_be_aimed_at(dense, data):
    with pytest.raises(SettingError, match="multiple choice, but gsm8k is none"):
        tokenised(dense, set_exams([Asked("gsm8k")], data / "tasks", limit=2), "")
