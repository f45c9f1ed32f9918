"""A prompt that keeps answering: change genes of an architecture, and hear what it would measure."""

import time
from collections.abc import Callable, Sequence

from predictor import AccuracyPredictor, sub_block_damages, what_if
from search.comparison import kept_shares
from space import GENES, Architecture, SearchSpace, SecateurError

HELP = """3.mlp_width=768 7.kv_groups=2   change genes (kv_groups, mlp_width, attention_sparsity, mlp_sparsity)
what 3.mlp_width                what each value of one gene would do
why                             which layers do most of the predicted damage
undo, reset                     take back the last change, or all
show                            the architecture as JSON
quit                            or Ctrl-D"""
_MOST_SHOWN = 8

Change = Callable[[Architecture, list[str]], Architecture]


class Prompt:
    """A conversation about one architecture.

    Args:
        predictors: what is asked; the first explains.
        space: whose budgets and choices count.
        start: the architecture to begin with, usually the winner.
        change: makes the changes LAYER.GENE=VALUE.
    """

    def __init__(
        self, predictors: Sequence[AccuracyPredictor], space: SearchSpace, start: Architecture, change: Change
    ) -> None:
        self._predictors = predictors
        self._predictor = predictors[0]
        self._space = space
        self._change = change
        self._steps = [start]
        self._start = [float(predictor.predict([start]).value[0]) for predictor in predictors]

    @property
    def architecture(self) -> Architecture:
        """The architecture as it is now."""
        return self._steps[-1]

    def answer(self, line: str) -> str | None:
        """Return the answer to a line, or None where the conversation is over."""
        words = line.split()
        if not words:
            return self._told()
        if words == ["quit"] or words == ["exit"]:
            return None
        started = time.perf_counter()
        try:
            text = self._reply(words)
        except SecateurError as error:
            return str(error)
        return f"{text}  [{1000 * (time.perf_counter() - started):.0f} ms]"

    def _reply(self, words: list[str]) -> str:
        match words:
            case ["help" | "?"]:
                return HELP
            case ["undo"]:
                self._steps = self._steps[:-1] or self._steps
            case ["reset"]:
                self._steps = self._steps[:1]
            case ["show"]:
                return self.architecture.to_json()
            case ["why"]:
                return self._why()
            case ["what", gene]:
                return self._what(gene)
            case _:
                self._steps.append(self._change(self.architecture, words))
        return self._told()

    def _told(self) -> str:
        found = []
        for predictor, start in zip(self._predictors, self._start, strict=True):
            told = predictor.predict([self.architecture])
            value, lower, upper = (float(part[0]) for part in (told.value, told.lower, told.upper))
            against = f", {100 * (value / start - 1):+.1f} % against the start" if start else ""
            found.append(f"{predictor.target.shown} {value:.4g} (90 % interval {lower:.4g} to {upper:.4g}{against})")
        kept = kept_shares(self._space, self._space.encode([self.architecture]))
        return ", ".join([*found, *map(str, kept)])

    def _why(self) -> str:
        shares = sub_block_damages(self._predictor, self.architecture)
        order = shares.sum(axis=1).argsort()[::-1][:_MOST_SHOWN]
        lines = [f"layer {i}: attention {shares[i, 0]:.4f}, MLP {shares[i, 1]:.4f}" for i in order.tolist()]
        return "\n".join([*lines, f"all: {shares.sum():.4f}"])

    def _what(self, place: str) -> str:
        layer, _, gene = place.partition(".")
        if gene not in GENES or not layer.isdigit():
            return "Write for example: what 3.mlp_width"
        column = 2 * int(layer) + (gene in ("mlp_width", "mlp_sparsity"))
        if column >= self._space.columns:
            return f"The layers are 0 to {self._space.layout.layers - 1}."
        name = "width" if gene in ("kv_groups", "mlp_width") else "sparsity"
        values = sorted({getattr(choice, name) for choice in self._space.choices[column]})
        told = what_if(self._predictor, self.architecture, int(layer), gene, values)
        now = getattr(self.architecture.layers[int(layer)], gene)
        return "\n".join(
            f"{'>' if value == now else ' '} {gene} {value:g}: {found:.4f}"
            for value, found in zip(values, told.value.tolist(), strict=True)
        )


def converse(predictors: Sequence[AccuracyPredictor], space: SearchSpace, start: Architecture, change: Change) -> None:
    """Answer what a person types until it ends or says quit.

    Args:
        predictors: what is asked; the first explains.
        space: whose budgets and choices count.
        start: the architecture to begin with.
        change: makes the changes LAYER.GENE=VALUE.
    """
    prompt = Prompt(predictors, space, start, change)
    print(prompt.answer(""))
    print("`help` says what can be asked.")
    while True:
        try:
            answer = prompt.answer(input("> "))
        except EOFError:
            return
        if answer is None:
            return
        print(answer)
