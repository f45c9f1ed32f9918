"""A search goes down by slopes before it learns, wanders when it is there, and learns from what is not hopeless."""

from dataclasses import replace

import pytest

from search import selection
from search.config import load_config
from search.folder import RunFolder
from search.job import Run
from search.progress import Reporter
from search.proposals import prior_architectures
from search.sampler import ArchitectureSampler
from search.strategies.descending import descend, measure_sums, wander
from search.study import ArchitectureStudy
from tests.evaluator.pieces import make_evaluator

PLENTY = 1e9  # tokens


@pytest.fixture
def work(pico, pico_folder, tmp_path):
    """Return what begins a search: a run that has measured its prior, and its study."""
    studies = []
    judge = make_evaluator(pico, tmp_path)

    def make(**settings):
        values = {"model": str(pico_folder), "budget": "parameters=0.7", "search.prior_sequences": 4, **settings}
        config = load_config(None, values)
        space = config.search_space(pico.layout)
        run = Run(config, RunFolder(tmp_path), Reporter(quiet=True), judge, space, {}, [], [], None)
        run.measure_alone(prior_architectures(space))
        study = ArchitectureStudy(tmp_path / f"{len(studies)}.db", space, ArchitectureSampler(space, 0), "test")
        studies.append(study)
        return run, study

    yield make
    for study in studies:
        study.close()


def whole(run):
    return [pair for pair in run.pairs if pair.origin != "prior"]


def test_every_step_that_is_kept_is_a_better_one(work):
    run, study = work()
    measure_sums(run, study)
    [start] = whole(run)
    spent = run.spent
    descend(run, study, 0, PLENTY)
    assert all(run.space.allows(pair.architecture) for pair in whole(run))
    assert len({pair.architecture for pair in whole(run)}) == len(whole(run)) == len(study.trials(0)) > 1
    centres = [next(p for p in run.pairs if p.architecture == each.architecture) for each in run.slopes]
    falling = [pair.measurement.kl for pair in centres]
    assert falling == sorted(falling, reverse=True)
    assert centres[0] == start
    assert len(centres) > 1
    assert run.lowest().measurement.kl > (1 - 0.002) * falling[-1]  # else it had gone on from there
    assert run.lowest().measurement.kl <= start.measurement.kl
    search = run.evaluator.protocol("search").tokens
    assert run.spent - spent == pytest.approx(search * (3 * len(run.slopes) + len(whole(run)) - 1), rel=0.5)


def test_it_ends_with_the_tokens_and_without_slopes_does_nothing(work):
    run, study = work()
    measure_sums(run, study)
    descend(run, study, 0, run.spent)
    assert (len(whole(run)), run.slopes) == (1, [])
    run, study = work(**{"search.slopes": False})
    measure_sums(run, study)
    descend(run, study, 0, PLENTY)
    wander(run, study, 1, PLENTY)
    assert (len(whole(run)), run.slopes) == (1, [])


def test_wandering_leaves_the_best_and_goes_down_again(work):
    run, study = work()
    measure_sums(run, study)
    descend(run, study, 0, PLENTY)
    known, best = {pair.architecture for pair in run.pairs}, run.lowest()
    wander(run, study, 1, PLENTY)
    first, *others = study.trials(1)
    assert first[0] not in known
    kl = {pair.architecture: pair.measurement.kl for pair in run.pairs}
    assert kl[first[0]] >= run.lowest().measurement.kl
    assert run.lowest().measurement.kl <= best.measurement.kl
    assert len(others) <= 3 * 4
    before = run.spent
    wander(run, study, 2, run.spent)
    assert run.spent == before


def test_the_same_run_descends_the_same_way(work):
    found = []
    for _ in range(2):
        run, study = work()
        measure_sums(run, study)
        descend(run, study, 0, PLENTY)
        wander(run, study, 1, PLENTY)
        found.append((run.spent, [pair.architecture for pair in run.pairs]))
    assert found[0] == found[1]


def test_first_pairs_lie_around_what_was_descended_to(work):
    run, study = work()
    measure_sums(run, study)
    descend(run, study, 0, PLENTY)
    best = selection.lowest(run.pairs, run.space, 1)
    prior, settings = run.elsewhere().expected, run.config.search
    near, far = (
        selection.first_pairs(run.space, prior, {}, settings, seed=0, best=centres)["guided"] for centres in (best, [])
    )
    origin = run.space.encode(best)[0].astype(int)

    def distances(architectures):
        return sorted(int(abs(row - origin).sum()) for row in run.space.encode(architectures).astype(int))

    assert sum(distances(near)[:8]) < sum(distances(far)[:8])


def test_rounds_are_fitted_on_what_is_not_hopeless(work, monkeypatch):
    run, study = work()
    measure_sums(run, study)
    prior, settings = run.elsewhere().expected, run.config.search
    drawn = [each for own in selection.first_pairs(run.space, prior, {}, settings, 0).values() for each in own]
    run.score(drawn, "guided")
    lost = [pair.architecture for pair in whole(run)[-5:]]
    run.pairs = [
        replace(pair, measurement=replace(pair.measurement, kl=100.0)) if pair.architecture in lost else pair
        for pair in run.pairs
    ]
    asked = []
    monkeypatch.setattr(run, "fit_on", lambda pairs, _: asked.append(pairs))
    run.fit()
    run.fit_near()
    every, near = asked
    assert every == run.pairs
    assert {pair.architecture for pair in every} - {pair.architecture for pair in near} >= set(lost)
    assert [pair for pair in near if pair.origin == "prior"] == [pair for pair in every if pair.origin == "prior"]
    assert len([pair for pair in near if pair.origin != "prior"]) >= 30
