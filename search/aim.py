"""Items of tasks that a search aims at, which are never those that are reported: best.json and exports tell them."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from evaluator import DenseModel
from search.accuracy_settings import settings_of
from search.config import RunConfig
from search.progress import Reporter

if TYPE_CHECKING:
    from evaluator.harness.items import Aim, Items

_SHARE = 1 / 4  # of a task's items, at most, in each split


def aim_of(config: RunConfig, dense: DenseModel, reporter: Reporter) -> Callable[[], "Aim"] | None:
    """Return what draws the items that a run's search aims at; None where it aims at text.

    They are drawn when they are needed, the same in every process of the run: to export its winner needs no task.

    Args:
        config: the settings.
        dense: whose tokenizer reads them.
        reporter: tells a person about the progress.
    """
    return functools.cache(functools.partial(_draw, config, dense, reporter)) if config.tasks.ask else None


def _draw(config: RunConfig, dense: DenseModel, reporter: Reporter) -> "Aim":
    from evaluator.harness.evaluation import set_exams
    from evaluator.harness.items import Aim, tokenised
    from evaluator.harness.tasks import asked_for

    settings, asked = settings_of(config), asked_for(config.tasks.ask)
    sizes = {"search": config.tasks.search, "validate": config.tasks.validate_}
    items: dict[str, Items] = {}
    left: dict[str, frozenset[int]] = {}
    with reporter.stage("Drawing items", len(sizes) * len(asked), "tasks") as advance:
        for split, size in sizes.items():
            exams = set_exams(asked, settings.data, size, config.seed, left, _SHARE, advance)
            drawn = {paper.name: paper.items for exam in exams for paper in exam.papers}
            left = {name: left.get(name, frozenset()).union(drawn.get(name, ())) for name in {*left, *drawn}}
            title = f"{', '.join(config.tasks.ask)}, {sum(map(len, drawn.values())):,} items"
            items[split] = tokenised(dense, exams, title)
    return Aim(items, config.tasks.signal, {name: tuple(sorted(own)) for name, own in sorted(left.items())})
