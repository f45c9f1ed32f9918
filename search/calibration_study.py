"""Which text serves a model best to calibrate on: sources against settings, over repeated draws.

    for each draw of each source:  set -> statistics -> [ setting -> prune -> measure on every text ]

A setting is a criterion at a level: a share of zeros in every sub-block, a pattern, or a budget on what is kept. What
a draw of a source gave under a setting is kept as one file, so that a study that was stopped goes on with what is
missing.

Source of the comparison: arXiv 2410.17711, which repeats each draw and reports the mean.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from evaluator import (
    SPLITS,
    Calibration,
    CalibrationSet,
    DenseModel,
    Evaluator,
    PairStore,
    Texts,
    gather_set,
)
from evaluator.splits import shared_passages
from search.calibration_setting import Setting
from search.environment import commit, device_name
from search.folder import write_json
from search.progress import Reporter
from space import Architecture, Criterion, SettingError

# Gathers what every criterion without gradients needs.
_ALL = Criterion(weights="sparsegpt")
# Measures something else of what is installed: the evaluator, the architecture and the number of the draw.
Also = Callable[[Evaluator, Architecture, int], dict[str, float]]
Row = dict[str, Any]


@dataclass(frozen=True)
class Study:
    """What is compared.

    Args:
        sources: recipes by name.
        settings: in the order of the table.
        texts: by name, the (sequences, sequence_length) token ids to measure on, which no source may hold.
        sequences: of a calibration set.
        length: tokens of each.
        seed: of the first draw; the others follow.
        pools: by source, the sequences (n, length) to draw from where they are not all of it.

    Raises:
        SettingError: a text has a name that means something else.
    """

    sources: Mapping[str, Calibration]
    settings: Sequence[Setting]
    texts: Mapping[str, Tensor]
    sequences: int = 32
    length: int = 512
    seed: int = 0
    pools: Mapping[str, Tensor] | None = None

    def __post_init__(self) -> None:
        for name in self.texts:
            if ":" in name or name in SPLITS:
                raise SettingError(
                    f"A text's name must have no colon and be none of {', '.join(SPLITS)}, but is {name!r}; rename it."
                )

    def key(self, dense: DenseModel) -> str:
        """Return what every row depends on, beside its source, draw and setting."""
        texts = Texts(dict(self.texts), {})
        own = [dense.weights_hash, dense.dtype, self.sequences, self.length, self.seed]
        return hashlib.sha256(str([*own, *(texts.fingerprint(name) for name in texts.tokens)]).encode()).hexdigest()[
            :12
        ]


def run_study(
    dense: DenseModel,
    study: Study,
    draws: Sequence[int],
    folder: Path,
    reporter: Reporter | None = None,
    also: Also | None = None,
) -> list[Row]:
    """Measure what is missing and return all rows.

    Args:
        dense: the model.
        study: what is compared.
        draws: of each source, by number.
        folder: where rows, and text that the model writes, are kept.
        reporter: tells a person about the progress.
        also: what else is measured; its figures are in the rows.
    """
    reporter = reporter or Reporter(quiet=True)
    cells = [(source, draw, setting) for source in study.sources for setting in study.settings for draw in draws]
    key, rows = study.key(dense), {}
    for cell in cells:
        file = row_file(folder, key, *cell, study.sources[cell[0]])
        if file.exists():
            rows[cell] = json.loads(file.read_text())
    missing = [cell for cell in cells if cell not in rows]
    where = {"device": device_name(dense), "commit": commit()}
    for setting in study.settings:
        setting.check(dense)  # before anything is drawn
    if missing:
        with _judge(dense, study, folder) as judge:
            for source, draw in dict.fromkeys(cell[:2] for cell in missing):
                made = _drawn(dense, study, source, draw, folder, reporter)
                settings = [cell[2] for cell in missing if cell[:2] == (source, draw)]
                title = f"{source}, draw {draw}"
                with reporter.stage(title, len(settings), "measurements") as advance:
                    for setting, figures in _measured(judge, study, made, draw, settings, also):
                        row = {"source": source, "draw": draw, "setting": str(setting), **where, **figures}
                        file = row_file(folder, key, source, draw, setting, study.sources[source])
                        file.parent.mkdir(parents=True, exist_ok=True)
                        write_json(file, row)
                        rows[source, draw, setting] = row
                        advance(1)
    return [rows[cell] for cell in cells]


@contextmanager
def _judge(dense: DenseModel, study: Study, folder: Path) -> Iterator[Evaluator]:
    """Open an evaluator whose references all draws share; it is calibrated anew for each."""
    folder.mkdir(parents=True, exist_ok=True)
    store = PairStore(folder / "measurements.db")
    first = next(iter(study.texts.values()))[:1]  # the least there is: nothing is pruned by it
    texts = Texts({"calibrate": first, **study.texts}, {"calibrate": "", **{name: name for name in study.texts}})
    try:
        judge = Evaluator(dense, texts, store, criterion=Criterion("magnitude", "magnitude", "none"))
        yield judge
        judge.surgeon.restore()
    finally:
        store.close()


def row_file(folder: Path, key: str, source: str, draw: int, setting: Setting, recipe: Calibration) -> Path:
    """Return the file of a row, named by all that it depends on.

    Args:
        folder: of the study.
        key: of the study, `Study.key`.
        source: its name.
        draw: its number.
        setting: to prune by.
        recipe: of the source.
    """
    name = f"{source} {recipe.fingerprint()[:8]} {draw} {setting}"
    return folder / "rows" / key / f"{name.replace('/', '_')}.json"


def _measured(
    judge: Evaluator, study: Study, made: CalibrationSet, draw: int, settings: Sequence[Setting], also: Also | None
) -> Iterator[tuple[Setting, Row]]:
    """Yield what a draw of a source measures under each setting."""
    with judge.calibrated_on(made.tokens, _ALL):
        for setting in settings:
            with judge.pruning_by(setting.pruning()):
                architecture = setting.architecture(judge)
                measured = {name: judge.measure([architecture], name, "study")[0] for name in study.texts}
                judge.surgeon.install(architecture)
                more = also(judge, architecture, draw) if also else {}
            figures = {
                "calibration": made.record["hash"],
                "parts": made.record["parts"],
                "perplexity": {name: each.perplexity for name, each in measured.items()},
                "kl": {name: each.kl for name, each in measured.items()},
            }
            yield setting, {**figures, **more}


def _drawn(dense: DenseModel, study: Study, source: str, draw: int, folder: Path, reporter: Reporter) -> CalibrationSet:
    """Return a draw of a source, which holds nothing that is measured on."""
    recipe, cache, seed = study.sources[source], folder / "generated", study.seed + draw
    total = recipe.tokens_to_write(study.sequences, study.length)
    with reporter.stage("Writing text", total, "tokens") if total else nullcontext(lambda _: None) as advance:
        made = gather_set(dense, recipe, study.sequences, study.length, seed, cache, advance, pools=study.pools)
    for name, tokens in study.texts.items():
        if shared_passages(made.tokens, tokens):
            raise SettingError(
                f"A study must measure on text that it does not calibrate on, but {source} has passages of {name}; "
                "give another."
            )
    return made


def summary(rows: Sequence[Row]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return means over draws by setting and source, each with deviation and count, and the geometric mean of texts.

    Perplexities are averaged as logarithms; `perplexity` holds each text and `all`, their geometric mean, and its
    deviation is that of a draw, as a share.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for setting in dict.fromkeys(row["setting"] for row in rows):
        for source in dict.fromkeys(row["source"] for row in rows):
            own = [row for row in rows if (row["setting"], row["source"]) == (setting, source)]
            if own:
                found.setdefault(setting, {})[source] = _summary(own)
    return found


def _summary(rows: Sequence[Row]) -> dict[str, Any]:
    logs = {text: np.log([row["perplexity"][text] for row in rows]) for text in rows[0]["perplexity"]}
    logs["all"] = np.mean(list(logs.values()), axis=0)
    told: dict[str, Any] = {
        "draws": len(rows),
        "perplexity": {text: round(float(np.exp(each.mean())), 3) for text, each in logs.items()},
        "perplexity_deviation": {text: _deviation(each) for text, each in logs.items()},
    }
    if "accuracy" in rows[0]:
        accuracies = np.array([row["accuracy"] for row in rows])
        told |= {"accuracy": round(float(accuracies.mean()), 4), "accuracy_deviation": _deviation(accuracies)}
    return told


def _deviation(values: np.ndarray) -> float | None:
    """Return the standard deviation of a draw; none where there is one draw only."""
    return round(float(values.std(ddof=1)), 4) if len(values) > 1 else None


def winners(table: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, str]:
    """Return by setting the source of the lowest geometric mean of perplexities."""
    return {setting: min(own, key=lambda source: own[source]["perplexity"]["all"]) for setting, own in table.items()}


def described(study: Study, draws: Sequence[int]) -> dict[str, Any]:
    """Return a study as its result tells it."""
    return {
        "sources": {name: recipe.to_dict() for name, recipe in study.sources.items()},
        "settings": [str(setting) for setting in study.settings],
        "texts": {name: list(tokens.shape) for name, tokens in study.texts.items()},
        "sequences": study.sequences,
        "sequence_length": study.length,
        "seed": study.seed,
        "draws": list(draws),
    }
