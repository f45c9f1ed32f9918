"""Sliders for a notebook: what each layer keeps, like an equalizer, and what the predictor says of it at once."""

from html import escape
from typing import TYPE_CHECKING

import numpy as np

from predictor import AccuracyPredictor
from search.folder import RunFolder
from space import Architecture, Choice, SearchSpace, SettingError, cost_of

if TYPE_CHECKING:
    from ipywidgets import HTML, HBox, SelectionSlider, VBox

_TITLES = ("attention: KV groups kept", "MLP: width kept")


class Sliders:
    """One slider for each sub-block, and the prediction of the architecture that they say.

    Args:
        predictor: what is asked.
        space: whose choices the sliders have and whose budgets count.
        start: where they stand at first.

    Raises:
        SettingError: ipywidgets is not installed.
        ArchitectureError: the start is not in the space.
    """

    def __init__(self, predictor: AccuracyPredictor, space: SearchSpace, start: Architecture) -> None:
        try:
            import ipywidgets
        except ImportError:
            raise SettingError(
                "Sliders need ipywidgets, which is not installed here; pip install 'secateur[notebooks]'."
            ) from None
        self._widgets = ipywidgets
        self._predictor = predictor
        self._space = space
        self._start = space.encode([start])[0]
        self.told: HTML = ipywidgets.HTML()
        self.sliders: list[SelectionSlider] = [self._slider(column) for column in range(space.columns)]
        for slider in self.sliders:
            slider.observe(lambda _: self._answer(), names="value")
        self._answer()

    @property
    def architecture(self) -> Architecture:
        """The architecture that the sliders say."""
        row = [self._space.choices[column].index(slider.value) for column, slider in enumerate(self.sliders)]
        return self._space.decode(np.array([row], dtype=np.int16))[0]

    @property
    def panel(self) -> "VBox":
        """All sliders with the prediction above them."""
        box, back = self._widgets.VBox, self._widgets.Button(description="back to the start", icon="undo")
        back.on_click(lambda _: self.reset())
        rows = [box([self._widgets.HTML(f"<b>{title}</b>"), self._row(part)]) for part, title in enumerate(_TITLES)]
        return box([self.told, *rows, back])

    def reset(self) -> None:
        """Put all sliders back to the start."""
        for column, slider in enumerate(self.sliders):
            slider.value = self._space.choices[column][self._start[column]]

    def _row(self, part: int) -> "HBox":
        box = self._widgets.VBox
        found = [
            box([slider, self._widgets.HTML(f"<small>{layer}</small>")], layout={"align_items": "center"})
            for layer, slider in enumerate(self.sliders[part::2])
        ]
        return self._widgets.HBox(found, layout={"flex_flow": "row wrap"})

    def _slider(self, column: int) -> "SelectionSlider":
        return self._widgets.SelectionSlider(
            options=[(_label(choice), choice) for choice in self._space.choices[column]],
            value=self._space.choices[column][self._start[column]],
            orientation="vertical",
            layout={"width": "46px", "height": "130px"},
        )

    def _answer(self) -> None:
        asked = self.architecture
        start = self._space.decode(self._start[None])[0]
        found = self._predictor.predict([asked, start])
        value, lower, upper = (float(part[0]) for part in (found.value, found.lower, found.upper))
        cost, dense = (cost_of(self._space.layout, each) for each in (asked, Architecture.dense(self._space.layout)))
        within = self._space.allows(asked)
        budgets = " and ".join(map(str, self._space.budgets))
        change = 100 * (value / float(found.value[1]) - 1)
        self.told.value = (
            f"<big>{escape(self._predictor.target.shown)} <b>{value:.4f}</b></big> "
            f"(90 % interval {lower:.4f} to {upper:.4f}; {change:+.1f} % against the start)<br>"
            f"{cost.parameters / dense.parameters:.1%} of the decoder's parameters, "
            f"{'within' if within else '<b>over</b>'} the budget ({escape(budgets)})"
        )


def open_sliders(run: RunFolder) -> Sliders:
    """Return sliders that begin with a finished run's winner and ask its predictor.

    Args:
        run: the run folder.

    Raises:
        RunFolderError: the run is not finished or is damaged.
        PredictorError: its predictor cannot be read.
        SettingError: ipywidgets is not installed.
    """
    space = run.config().search_space(run.layout())
    winner = Architecture.from_dict(run.best()["architecture"])
    return Sliders(AccuracyPredictor.load(run.predictor), space, winner)


def _label(choice: Choice) -> str:
    return f"{choice.width:,}" if not choice.sparsity else f"{choice.width:,} {choice.sparsity:.0%}"
