"""Sliders for a notebook: what each layer keeps, like an equalizer, and what the predictor says of it at once."""

from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from predictor import AccuracyPredictor
from search.comparison import kept_shares
from search.folder import RunFolder
from space import (
    Architecture,
    ArchitectureError,
    Choice,
    Indices,
    PredictorError,
    SearchSpace,
    SettingError,
)

if TYPE_CHECKING:
    from ipywidgets import HTML, HBox, SelectionSlider, VBox

_TITLES = ("attention: KV groups kept", "MLP: width kept")
_PARTS = ("attention", "MLP")
_COLUMN = "50px"  # five digits fit, and the sliders of 24 layers stand in one row of a usual screen
_TOP = "8px 0 0 0"  # half a handle: at the highest choice it stands out above its track and would be cut off


class Sliders:
    """One slider for each sub-block, and the prediction of the architecture that they say.

    Args:
        predictor: what is asked.
        space: whose choices the sliders have and whose budgets count.
        start: where they stand at first; it may be over the budgets.

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
        self._start = _encoded(space, start)
        self._sparse = any(choice.sparsity for options in space.choices for choice in options)
        self._held = False
        self.told: HTML = ipywidgets.HTML()
        self.sliders: list[SelectionSlider] = [self._slider(column) for column in range(space.columns)]
        self.readouts: list[HTML] = [ipywidgets.HTML() for _ in self.sliders]
        for column, slider in enumerate(self.sliders):
            self._read(column)
            slider.observe(lambda _, column=column: self._moved(column), names="value")
        self._answer()

    @property
    def architecture(self) -> Architecture:
        """The architecture that the sliders say."""
        return self._space.decode(self._indices)[0]

    @property
    def panel(self) -> "VBox":
        """All sliders with the prediction above them."""
        box, back = self._widgets.VBox, self._widgets.Button(description="back to the start", icon="undo")
        back.on_click(lambda _: self.reset())
        zeros = ", and the share of zeros" if self._sparse else ""
        rows = [
            box([self._widgets.HTML(f"<b>{title}{zeros}</b>"), self._row(part)]) for part, title in enumerate(_TITLES)
        ]
        return box([self.told, *rows, back])

    def reset(self) -> None:
        """Put all sliders back to the start."""
        with self._one_answer():
            for slider, index in zip(self.sliders, self._start[0].tolist(), strict=True):
                slider.index = index

    @property
    def _indices(self) -> Indices:
        return np.array([[slider.index for slider in self.sliders]], dtype=np.int16)

    def _row(self, part: int) -> "HBox":
        columns = range(part, self._space.columns, 2)
        return self._widgets.HBox([self._column(column) for column in columns], layout={"flex_flow": "row wrap"})

    def _column(self, column: int) -> "VBox":
        return self._widgets.VBox(
            [self.sliders[column], self.readouts[column]], layout={"align_items": "center", "width": _COLUMN}
        )

    def _slider(self, column: int) -> "SelectionSlider":
        return self._widgets.SelectionSlider(
            options=[(_label(choice), choice) for choice in self._space.choices[column]],
            index=int(self._start[0, column]),
            orientation="vertical",
            readout=False,  # it cuts off what is wider than three digits
            layout={"width": "46px", "height": "120px", "margin": _TOP},
        )

    def _read(self, column: int) -> None:
        choice = self._space.choices[column][self.sliders[column].index]
        lines = [f"{choice.width}", f"<small><b>L{column // 2}</b></small>"]
        if self._sparse:
            lines.insert(1, f"<small>{_zeros(choice) if choice.width else '–'}</small>")
        # The title is in the HTML: as ipywidgets' `tooltip` a slider without a description does not show it, and a box
        # that has one is not drawn at all (8.1).
        title, style = f"layer {column // 2}, {_PARTS[column % 2]}", "text-align:center;line-height:1.3"
        self.readouts[column].value = f"<div title='{title}' style='{style}'>{'<br>'.join(lines)}</div>"

    def _moved(self, column: int) -> None:
        self._read(column)
        if self._held:
            return
        unit = next(unit for unit in self._space.units if column in unit)
        with self._one_answer():
            for other in unit:
                self.sliders[other].index = self.sliders[column].index

    @contextmanager
    def _one_answer(self) -> Iterator[None]:
        """Answer when all sliders have moved, and not after each of them."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        self._answer()

    def _answer(self) -> None:
        self.told.value = "<br>".join([self._prediction(), *self._costs()])

    def _prediction(self) -> str:
        try:
            found = self._predictor.predict(self._space.decode(np.concatenate([self._indices, self._start])))
        except PredictorError as error:  # raised in a callback, no notebook would show it
            return f"<b>no prediction:</b> {escape(str(error))}"
        value, start = (float(part) for part in found.value)
        return (
            f"<big>{escape(self._predictor.target.shown)} <b>{value:.4f}</b></big> "
            f"(90 % interval {found.lower[0]:.4f} to {found.upper[0]:.4f}; {_change(value, start)} against the start)"
        )

    def _costs(self) -> list[str]:
        """Return a line for each budget, or one on the parameters where there is none."""
        shares = kept_shares(self._space, self._indices)
        return [escape(str(each), quote=False).replace(", over ", ", <b>over</b> ") for each in shares]


def open_sliders(run: str | Path | RunFolder) -> Sliders:
    """Return sliders that begin with a finished run's winner and ask its predictor.

    Args:
        run: the run folder, or where it is.

    Raises:
        RunFolderError: the run is not finished or is damaged.
        PredictorError: its predictor cannot be read.
        SettingError: ipywidgets is not installed.
    """
    folder = run if isinstance(run, RunFolder) else RunFolder(Path(run))
    space = folder.search_space()
    winner = Architecture.from_dict(folder.best()["architecture"])
    return Sliders(AccuracyPredictor.load(folder.predictor), space, winner)


def _encoded(space: SearchSpace, start: Architecture) -> Indices:
    """Return the start (1, columns) as choices of the space."""
    row = space.encode([start])
    for unit in space.units:
        if len(set(row[0, unit].tolist())) > 1:
            raise ArchitectureError(
                f"A start in a space of whole blocks must keep or remove layers whole, but has half of layer "
                f"{unit[0] // 2}; begin with another architecture or use a space without whole_blocks."
            )
    return row


def _label(choice: Choice) -> str:
    return f"{choice.width} {_zeros(choice)}" if choice.sparsity else f"{choice.width}"


def _zeros(choice: Choice) -> str:
    return f"{100 * choice.sparsity:.3g} %"


def _change(value: float, start: float) -> str:
    """Return by how much a value differs: in percent, but of a start that is shown as 0 there is none."""
    if round(start, 4) == 0:
        return f"{value - start:+.4f}"
    return f"{100 * (value - start) / abs(start):+.1f} %"
