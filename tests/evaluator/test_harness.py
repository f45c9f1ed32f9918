"""Tasks of lm-eval over local files: asked, answered and scored as the harness does it itself."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm

pytest.importorskip("lm_eval", reason="needs the package `lm-eval`: pip install 'secateur[accuracy]'")

from evaluator import open_model
from evaluator.harness import evaluation
from evaluator.harness.answers import Answers, Protocol, Score, less, mean_flips, mean_less, mean_over
from evaluator.harness.evaluation import answer, set_exams
from evaluator.harness.model import HarnessModel
from evaluator.harness.tasks import PRESETS, Asked, asked_for, load_tasks
from space import MeasurementError, SettingError
from tests.evaluator.own_tasks import FILES, own_task


@pytest.fixture(scope="module")
def tasks(data):
    return data / "tasks"


@pytest.fixture(scope="module")
def model(stories):
    return open_model(str(stories), dtype="float32")


@pytest.mark.parametrize("name", [*FILES, "mmlu_abstract_algebra", "mmlu_security_studies"])
def test_prompts_and_scores_are_those_of_the_harness_own_task(name, tasks, model, tmp_path):
    """Its definition over rows in the form of the hub's, answered by its own class for transformers models."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    asked = Asked(name, 5 if name.startswith("mmlu") else 0)
    [exam] = set_exams([asked], tasks, limit=12, seed=3)
    [paper] = exam.papers
    own = own_task(name, tasks, tmp_path)
    own.set_config("num_fewshot", asked.shots)
    theirs = HFLM(pretrained=model.model, tokenizer=model.tokenizer, batch_size=4, max_length=512)
    found = evaluate(theirs, {"tasks": {name: own}, "groups": {}}, samples={name: list(paper.items)}, bootstrap_iters=0)

    sent = []

    class Listening(HarnessModel):
        def loglikelihood(self, requests, disable_tqdm=True):
            sent.extend(request.args for request in requests)
            return super().loglikelihood(requests)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evaluator.harness.model.HarnessModel", Listening)
        [score] = answer(model, [exam], tmp_path / "cache")
    rows = sorted(found["samples"][name], key=lambda row: row["doc_id"])
    assert sent == [pair for row in rows for pair in row["arguments"]]
    assert len(sent) >= 24
    [part] = score.parts
    assert set(part.scores) == set(rows[0]["metrics"])
    for metric, values in part.scores.items():
        assert values == tuple(row[metric] for row in rows)
    mine = np.concatenate(part.loglikelihoods)
    assert mine == pytest.approx([value for row in rows for value, _ in row["filtered_resps"]], abs=1e-3)
    told = found["results"][name]
    assert score.accuracy.value == pytest.approx(told["acc,none"])


def test_errors_of_a_mean_are_the_harness_own(tasks, model, tmp_path):
    from lm_eval.api.metrics import mean_stderr

    [exam] = set_exams([Asked("piqa")], tasks, limit=40)
    [score] = answer(model, [exam], tmp_path)
    assert score.accuracy.standard_error == pytest.approx(mean_stderr(list(score.values)))


def test_a_group_is_sampled_over_all_its_tasks(tasks):
    [exam] = set_exams([Asked("mmlu", 5)], tasks, limit=60)
    assert sum(len(paper.items) for paper in exam.papers) == 60
    assert exam.of == 14042
    assert len(exam.papers) > 20
    assert all(paper.shots == 5 for paper in exam.papers)


def test_a_seed_draws_the_same_items_and_another_others(tasks):
    def drawn(seed):
        [exam] = set_exams([Asked("piqa")], tasks, limit=50, seed=seed)
        return exam.papers[0].items, exam.papers[0].fingerprint

    assert drawn(1) == drawn(1)
    assert drawn(1)[0] != drawn(2)[0]
    assert drawn(1)[1] != drawn(2)[1]


def test_items_that_are_to_be_left_are_not_drawn(tasks):
    left = frozenset(range(400))
    [exam] = set_exams([Asked("openbookqa")], tasks, leave={"openbookqa": left})
    assert exam.papers[0].items == tuple(range(400, 500))
    assert exam.of == 100


def test_what_was_answered_is_not_asked_again(tasks, model, tmp_path):
    exams = set_exams([Asked("copa"), Asked("piqa")], tasks, limit=10)
    first = answer(model, exams, tmp_path)
    told = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "_ask", lambda *_: pytest.fail("asked again"))
        again = answer(model, exams, tmp_path, told.append)
    assert again == first
    assert sum(told) == sum(exam.requests for exam in exams) == 40


def test_a_run_that_was_stopped_goes_on_with_the_next_task(tasks, model, tmp_path):
    exams = set_exams([Asked("copa"), Asked("piqa"), Asked("openbookqa")], tasks, limit=10)
    asked, ask = [], evaluation._ask

    def dying(model, paper, protocol):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(paper.name)
        return ask(model, paper, protocol)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "_ask", dying)
        with pytest.raises(KeyboardInterrupt):
            answer(model, exams, tmp_path)
        asked.clear()
        scores = answer(model, exams, tmp_path)
    assert asked == ["openbookqa"]
    assert [score.task for score in scores] == ["copa", "piqa", "openbookqa"]


def test_other_weights_are_asked_anew_and_a_damaged_file_too(tasks, model, tmp_path):
    exams = set_exams([Asked("copa")], tasks, limit=10)
    [score] = answer(model, exams, tmp_path)
    answer(replace(model, weights_hash="0123456789abcdef"), exams, tmp_path)
    files = sorted(tmp_path.glob("*/*.json"))
    assert len(files) == 2
    file = next(file for file in files if file.parent.name == model.weights_hash)
    file.write_text(file.read_text()[:100])
    [again] = answer(model, exams, tmp_path)
    assert again.values.tolist() == score.values.tolist()
    assert json.loads(file.read_text())["scores"]["acc"] == list(score.values)


def test_what_was_kept_of_another_protocol_is_not_taken(tasks, model, tmp_path):
    [score] = answer(model, set_exams([Asked("copa")], tasks, limit=5), tmp_path)
    [part], [file] = score.parts, tmp_path.glob("*/*.json")
    assert Answers.load(file, part.protocol) == part
    assert Answers.load(file, replace(part.protocol, requests="other")) is None


def test_answers_that_are_written_are_checked_by_their_number(tasks, model, tmp_path):
    exams = set_exams(asked_for(["gsm8k@2"]), tasks, limit=2)
    assert exams[0].papers[0].shots == 2
    [score] = answer(model, exams, tmp_path)
    assert score.metric == "exact_match,strict-match"
    assert set(score.parts[0].scores) == {"exact_match,strict-match", "exact_match,flexible-extract"}
    assert score.accuracy.value == 0
    assert score.chance is None
    assert score.parts[0].tokens > 2 * 256


def test_presets_are_asked_once_each_and_tasks_may_say_their_shots():
    asked = asked_for(["commonsense", "piqa", "mmlu@2"])
    assert [each.task for each in asked] == [each.task for each in PRESETS["commonsense"]] + ["mmlu"]
    assert asked[-1].shots == 2


@pytest.mark.parametrize(
    ("names", "words"),
    [([], "no preset and no task"), (["piqa@few"], "NAME@SHOTS"), (["@5"], "NAME@SHOTS")],
)
def test_what_cannot_be_asked_for(names, words):
    with pytest.raises(SettingError, match=words):
        asked_for(names)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (Asked("hellaswag"), "or one of arc_easy, boolq"),
        (Asked("piqa", 5), "no examples to show"),
        (Asked("mmlu_alchemy", 5), "alchemy_dev.csv"),
    ],
)
def test_what_local_files_cannot_ask(asked, words, tasks):
    with pytest.raises(SettingError, match=words):
        load_tasks(asked, tasks)


def test_what_is_not_there(tmp_path):
    with pytest.raises(SettingError, match=r"piqa.jsonl.*not there"):
        load_tasks(Asked("piqa"), tmp_path)
    with pytest.raises(SettingError, match="has none"):
        load_tasks(Asked("mmlu", 5), tmp_path)
    with pytest.raises(SettingError, match="alchemy' is none"):
        load_tasks(Asked("alchemy"), None)
    with pytest.raises(SettingError, match="hub or its cache"):
        load_tasks(Asked("arc_easy"), None)


def test_a_metric_that_a_task_has_not(tasks, model, tmp_path):
    exams = set_exams([Asked("copa", metric="f1")], tasks, limit=5)
    with pytest.raises(MeasurementError, match="one of acc, but is 'f1'"):
        answer(model, exams, tmp_path)


def scored(task, values, loglikelihoods=()):
    protocol = Protocol("w", "float32", "t", task, "r", 0, len(values), 100, 0, "0")
    items = tuple(f"{task}:{place}" for place in range(len(values)))
    return Score(
        task, "acc", (Answers(protocol, items, {"acc": tuple(values)}, loglikelihoods, (0,) * len(values)),), 100
    )


def test_differences_are_paired_by_items():
    one, other = scored("a", [1, 1, 1, 0, 1, 1]), scored("a", [0, 1, 0, 0, 0, 1])
    found = less(one, other)
    assert found.value == pytest.approx(0.5)
    assert found.standard_error == pytest.approx(np.std([1, 0, 1, 0, 1, 0], ddof=1) / np.sqrt(6))
    assert found.p == pytest.approx(2 * 0.5**3)  # three against none
    assert less(one, one).p == 1
    with pytest.raises(MeasurementError, match="same items"):
        less(one, scored("b", [0] * 6))


def test_tasks_weigh_the_same_in_a_mean():
    ones = [scored("a", [1, 0, 1, 1]), scored("b", [0, 0, 0, 0, 0, 0, 0, 1])]
    others = [scored("a", [0, 0, 1, 1]), scored("b", [0] * 8)]
    mean = mean_over(ones)
    assert mean.value == pytest.approx((0.75 + 0.125) / 2)
    assert mean.standard_error == pytest.approx(np.hypot(0.25, 0.125) / 2)
    assert mean.items == 12
    found = mean_less(ones, others)
    assert found.value == pytest.approx((0.25 + 0.125) / 2)
    assert found.standard_error == pytest.approx(np.hypot(0.25, 0.125) / 2)
    assert found.p == pytest.approx(2 * norm.sf(found.value / found.standard_error))


def test_flips_add_up_what_cancels_in_a_difference():
    ones = [scored("a", [1, 0, 1, 0]), scored("b", [1, 1, 0.5, 0])]
    others = [scored("a", [0, 1, 1, 0]), scored("b", [1, 1, 0.25, 0])]
    assert less(ones[0], others[0]).value == 0
    found = mean_flips(ones, others)
    assert found.value == pytest.approx((0.5 + 0.0625) / 2)
    errors = [np.std(own, ddof=1) / 2 for own in ([1, 1, 0, 0], [0, 0, 0.25, 0])]
    assert found.standard_error == pytest.approx(np.hypot(*errors) / 2)
    assert mean_flips(ones, ones).value == 0


def test_guessing_is_by_the_number_of_choices():
    assert scored("a", [1, 0], ((-1.0, -2.0), (-1.0, -1.0))).chance == 0.5
    assert scored("a", [1, 0]).chance is None
