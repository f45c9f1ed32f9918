"""Items of tasks as what a search measures on: how much of its right answers a pruned model has lost.

Notation: m is the margin of an item, the log-likelihood of its right choice less that of the best other; s is the
median of |m| over a task's items, of the dense model.

| signal | loss of an item | for |
| --- | --- | --- |
| `margin` | max(0, sigmoid(m dense / s) - sigmoid(m pruned / s)) | few items: it tells models apart that answer alike |
| `answers` | 1 where the dense model is right and the pruned one is not | many items |

Right answers that a pruned model has gained count nothing in either: near chance they are guesses. So a loss is 0 for
the dense model and never below, as a divergence is, and all that learns from divergences learns from it.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from evaluator.accuracy import TokenScores
from evaluator.checkpoint import DenseModel, quiet_transformers
from evaluator.harness.continuations import Continuations
from evaluator.harness.evaluation import FEWSHOT_SEED, Exam, sample_of
from evaluator.harness.prefixes import grouped, questions_of, tokens_of
from evaluator.harness.tasks import quiet_harness
from space import SettingError

Signal = Literal["margin", "answers"]
LOSSES: dict[str, str] = {"margin": "probability of right answers lost", "answers": "right answers lost"}

_Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Items:
    """Multiple-choice items, tokenised.

    Args:
        title: what they are, in words.
        pairs: token ids of context and continuation, choice by choice.
        choices: of each item.
        gold: which is right, of each item.
        weights: of each item (items,), mean 1; tasks weigh the same.
        tasks: of each item, which task it is of (items,).
        tokens: that go through a model to answer them.
    """

    title: str
    pairs: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    choices: tuple[int, ...]
    gold: tuple[int, ...]
    weights: _Floats
    tasks: np.ndarray[Any, np.dtype[np.int64]]
    tokens: int

    @property
    def longest(self) -> int:
        """Tokens of the longest context with its continuation."""
        return max(len(context) + len(continuation) for context, continuation in self.pairs)

    @property
    def fingerprint(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of their tokens and right answers."""
        return hashlib.sha256(json.dumps([self.pairs, self.choices, self.gold]).encode()).hexdigest()[:16]


def tokenised(dense: DenseModel, exams: Sequence[Exam], title: str) -> Items:
    """Return the items of exams.

    Args:
        dense: whose tokenizer it is.
        exams: of multiple choice.
        title: what they are, in words.

    Raises:
        SettingError: a task is no multiple choice.
    """
    from evaluator.harness.model import HarnessModel

    asking = HarnessModel(dense)
    pairs, choices, gold, tasks = [], [], [], []
    for number, exam in enumerate(exams):
        for paper in exam.papers:
            task = paper.task
            if task.OUTPUT_TYPE != "multiple_choice":
                raise SettingError(
                    f"A search must aim at tasks of multiple choice, but {paper.name} is none; leave it out."
                )
            with quiet_harness():
                task.set_fewshot_seed(seed=FEWSHOT_SEED)
                task.build_all_requests(samples=sample_of(paper.items, paper.of))
            by_item: dict[int, list[Any]] = {}
            for instance in task.instances:
                by_item.setdefault(instance.doc_id, []).append(instance)
            for instances in by_item.values():
                document = instances[0].doc
                right = task.doc_to_text(document) if task.multiple_input else task.doc_to_target(document)
                if not isinstance(right, int):
                    raise SettingError(
                        f"A search must aim at items with one right choice, but those of {paper.name} have several; "
                        "leave it out."
                    )
                with quiet_transformers():
                    pairs += [asking.encoded(*instance.args) for instance in instances]
                choices.append(len(instances))
                gold.append(right)
                tasks.append(number)
            task._instances = None
    count = np.bincount(tasks)
    weights = len(tasks) / len(count) / count[tasks]
    tokens = tokens_of(grouped(questions_of(pairs, dense.longest_sequence, share=True)))
    return Items(title, tuple(pairs), tuple(choices), tuple(gold), weights, np.array(tasks), tokens)


@dataclass(frozen=True)
class Aim:
    """What a search aims at instead of the divergence on its text.

    Args:
        items: by split.
        signal: what is a loss.
        seen: places of all these items in their tasks, by task, which are not to be reported.
    """

    items: Mapping[str, Items]
    signal: Signal
    seen: Mapping[str, tuple[int, ...]]

    @property
    def loss(self) -> str:
        """What is lost, in words."""
        return LOSSES[self.signal]

    def reference(self, dense: DenseModel, split: str) -> "ItemReference":
        """Return the dense model's answers, with nothing pruned."""
        return ItemReference(dense, self.items[split], self.signal)


class ItemReference:
    """The dense model's answers, and what others have lost of them.

    Args:
        dense: with nothing pruned.
        items: to answer.
        signal: what is a loss.
    """

    def __init__(self, dense: DenseModel, items: Items, signal: Signal) -> None:
        self._items, self._signal = items, signal
        self._margins, _ = self._answered(dense)
        size = np.abs(self._margins)
        scales = [np.median(size[items.tasks == task]) for task in range(items.tasks.max() + 1)]
        self._scales = np.maximum(np.array(scales), np.finfo(np.float64).tiny)[items.tasks]

    def scores(self, model: DenseModel) -> TokenScores:
        """Return what a model has lost, item by item: as `kl` the loss, as `agreement` whether it is right.

        Args:
            model: pruned, a model of its own.
        """
        margins, nll = self._answered(model)
        if self._signal == "answers":
            lost = ((self._margins > 0) & (margins <= 0)).astype(np.float64)
        else:
            lost = np.maximum(0.0, _sigmoid(self._margins / self._scales) - _sigmoid(margins / self._scales))
        weighted = [own * self._items.weights for own in (nll, lost, margins > 0)]
        return TokenScores(*(torch.from_numpy(each).float() for each in weighted))

    def _answered(self, model: DenseModel) -> tuple[_Floats, _Floats]:
        """Return margins, and the negative log-probability of the right choice among the choices, of each item."""
        found = iter(each.value for each in Continuations(model).score(self._items.pairs))
        margins, nll = [], []
        for count, gold in zip(self._items.choices, self._items.gold, strict=True):
            own = np.array([next(found) for _ in range(count)])
            margins.append(own[gold] - np.delete(own, gold).max())
            nll.append(np.logaddexp.reduce(own) - own[gold])
        return np.array(margins), np.array(nll)


def _sigmoid(values: _Floats) -> _Floats:
    return np.asarray(0.5 * (1 + np.tanh(values / 2)))
