"""What questions have in common: a context that several continuations follow, a beginning that several contexts have.

What is common goes through the model once. A few-shot task repeats its examples before each question, five of MMLU's
being five times as long as the question, and a choice repeats its question.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from space import MeasurementError

Tokens = tuple[int, ...]

_SHORTEST = 16  # tokens of a beginning that questions are gathered by
_WORTH = 256  # tokens that a group must save: smaller batches and a pass of its own cost about as many


@dataclass(frozen=True, slots=True)
class Question:
    """A context and what may follow it.

    Args:
        context: token ids, at least one.
        continuations: token ids of each, at least one.
        places: of the continuations among all that were asked.
    """

    context: Tokens
    continuations: tuple[Tokens, ...]
    places: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """Questions whose contexts begin alike.

    Args:
        prefix: the common beginning, shorter than each context; may be empty.
        questions: at least one.
    """

    prefix: Tokens
    questions: tuple[Question, ...]


def questions_of(pairs: Sequence[tuple[Sequence[int], Sequence[int]]], longest: int, share: bool) -> list[Question]:
    """Return the questions that pairs of context and continuation ask.

    Args:
        pairs: token ids; what does not fit is cut off at the beginning, as the harness does.
        longest: tokens that the model takes at once.
        share: whether continuations of equal contexts are asked together.

    Raises:
        MeasurementError: a continuation is empty, follows nothing, or is longer than what the model takes.
    """
    found: dict[tuple[Tokens, int], tuple[list[Tokens], list[int]]] = {}
    for place, (context, continuation) in enumerate(pairs):
        if not context or not 0 < len(continuation) <= longest:
            raise MeasurementError(
                f"A continuation must be of 1 to {longest} tokens and follow at least one, but one is of "
                f"{len(continuation)} after {len(context)}; shorten the item, or take a model of longer sequences."
            )
        whole = (*context, *continuation)[-longest - 1 :]
        kept = tuple(whole[: -len(continuation)])
        continuations, places = found.setdefault((kept, 0 if share else place), ([], []))
        continuations.append(tuple(continuation))
        places.append(place)
    return [
        Question(context, tuple(continuations), tuple(places))
        for (context, _), (continuations, places) in found.items()
    ]


def grouped(questions: Sequence[Question]) -> list[Group]:
    """Return questions in groups of a common beginning, those that have none worth it in the first, with an empty one.

    Sorted by their tokens, contexts that begin alike lie side by side; a group takes the next as long as the tokens
    that it saves become more.
    """
    alone: list[Question] = []
    groups: list[Group] = []
    waiting: list[Question] = []
    common = 0

    def close() -> None:
        if common * (len(waiting) - 1) >= _WORTH:
            groups.append(Group(waiting[0].context[:common], tuple(waiting)))
        else:
            alone.extend(waiting)

    for question in sorted(questions, key=lambda each: each.context):
        most = len(question.context) - 1
        shared = min(common, most, _alike(waiting[-1].context, question.context)) if waiting else most
        if waiting and shared * len(waiting) < common * (len(waiting) - 1):
            close()
            waiting, shared = [], most
        if len(waiting) == 1 and shared < _SHORTEST:  # nothing in common: the first goes alone
            close()
            waiting, shared = [], most
        waiting, common = [*waiting, question], shared
    close()
    return [Group((), tuple(alone)), *groups] if alone else groups


def row_of(question: Question, before: int) -> Tokens:
    """Return what goes through the model of a question before its choices do.

    Args:
        question: with one continuation, all but its last token go with the context.
        before: tokens of the common beginning, which went before.
    """
    alone = question.continuations[0][:-1] if len(question.continuations) == 1 else ()
    return question.context[before:] + alone


def tokens_of(groups: Sequence[Group]) -> int:
    """Return the tokens that go through the model, without padding."""
    return sum(
        len(group.prefix)
        + sum(
            len(row_of(question, len(group.prefix)))
            + sum(len(own) - 1 for own in question.continuations if len(question.continuations) > 1)
            for question in group.questions
        )
        for group in groups
    )


def _alike(one: Tokens, other: Tokens) -> int:
    """Return how many tokens two sequences have in common from the beginning."""
    most = min(len(one), len(other))
    return next((place for place in range(most) if one[place] != other[place]), most)
