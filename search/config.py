"""Settings of a run: one YAML file, the resolved ones saved."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from search.ladder import Ladder
from search.settings import (
    CalibrationConfig,
    CriterionConfig,
    DTypeName,
    EngineName,
    KernelsName,
    LatencyConfig,
    RecoveryConfig,
    SearchConfig,
    Settings,
    SpaceConfig,
    TasksConfig,
    TextConfig,
)
from space import (
    LATENCY,
    Budget,
    LatencyTable,
    Layout,
    SearchSpace,
    SettingError,
    build_space,
)

# Settings of where a run works, which change nothing that it finds: it may go on with others.
WHERE = {"engine", "address"}
VARIABLE = "SECATEUR_DATABASE"  # that holds the URL of a database where nobody names another
# Sparsity levels when a budget on nonzero_parameters asks for sparsity: steps of 10 % around the usual 50 to 70 %.
_DEFAULT_SPARSITIES = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)


class RunConfig(Settings):
    """Everything that determines a run's result, and where it works."""

    model: str  # a built-in name, a folder, a .gguf file or a Hugging Face id
    budget: tuple[str, ...] = Field(min_length=1)  # METRIC=AMOUNT each, all must hold
    text: TextConfig = TextConfig.model_validate({})
    calibration: CalibrationConfig = CalibrationConfig.model_validate({})
    space: SpaceConfig = SpaceConfig.model_validate({})
    search: SearchConfig = SearchConfig.model_validate({})
    criterion: CriterionConfig = CriterionConfig.model_validate({})
    latency: LatencyConfig = LatencyConfig.model_validate({})
    recovery: RecoveryConfig = RecoveryConfig.model_validate({})
    tasks: TasksConfig = TasksConfig.model_validate({})
    dtype: DTypeName = "auto"
    device: str = "cpu"  # or cuda, cuda:1; auto lays a model over several GPUs
    # Compiled steps save a tenth to a fifth of measuring, and cost some seconds once; auto compiles for models of 50
    # million parameters or more on a processor, where there is a C++ compiler.
    kernels: KernelsName = "auto"
    engine: EngineName = "local"  # or dask: measurements are spread over the workers of
    address: str | None = None  # this scheduler, as in tcp://10.0.0.1:8786, or the file that it wrote
    # Name of the environment variable that holds the URL of the PostgreSQL database of pairs and study; None keeps them
    # in the run folder.
    database: str | None = Field(None, pattern="^[A-Za-z_][A-Za-z0-9_]*$")
    seed: int = Field(0, ge=0)

    @property
    def budgets(self) -> tuple[Budget, ...]:
        """The budgets, parsed."""
        return tuple(Budget.parse(text) for text in self.budget)

    @property
    def prior_sequences(self) -> int:
        """Sequences of the search text on which sub-blocks are measured alone."""
        wanted = self.search.prior_sequences or (self.text.search if self.text.shift else 1)
        return min(wanted, self.text.search)

    @model_validator(mode="after")
    def _somewhere(self) -> Self:
        if self.engine == "dask" and self.address is None:
            raise ValueError("engine: dask needs the address of a scheduler; give it with --address")
        return self

    @model_validator(mode="after")
    def _slopes_or_recovery(self) -> Self:
        if self.recovery.steps and self.search.slopes:
            raise ValueError("slopes are of models as they are pruned; with recovery.steps leave search.slopes out")
        if self.tasks.ask and self.search.slopes:
            raise ValueError("slopes are of the divergence on a text; with tasks.ask leave search.slopes out")
        if self.tasks.ask and (self.text.shift or self.calibration.mixes or self.search.against):
            raise ValueError(
                "text.shift, calibration.mixes and search.against go by the divergence on a text; leave them out where "
                "tasks.ask is given"
            )
        return self

    @property
    def takes_slopes(self) -> bool:
        """Whether backward passes at the best tell where to go on."""
        without = self.recovery.steps or self.tasks.ask
        return not without if self.search.slopes is None else self.search.slopes

    @property
    def needs_latency(self) -> bool:
        """Whether a budget is on latency, or the loss is traded against it."""
        return LATENCY in (*self.search.against, *(budget.metric for budget in self.budgets))

    def search_space(self, layout: Layout, latency: LatencyTable | None = None) -> SearchSpace:
        """Return the search space of a model under these settings.

        Args:
            layout: the dense model.
            latency: timings of its sub-blocks, which a budget on latency needs.

        Raises:
            BudgetError: no architecture meets the budgets, or latency is limited and was not timed.
            SettingError: a step or sparsity is out of range.
        """
        asks_sparsity = any(budget.metric == "nonzero_parameters" for budget in self.budgets)
        # Zeros make nothing faster.
        widths = self.needs_latency or not asks_sparsity if self.space.widths is None else self.space.widths
        criterion = self.criterion.criterion
        sparsities = self.space.sparsities
        if sparsities is None:
            levels = _DEFAULT_SPARSITIES if criterion.sparsity is None else (0.0, criterion.sparsity)
            sparsities = levels if asks_sparsity else (0.0,)
        return build_space(
            layout.pruned_by(criterion),
            self.budgets,
            widths=widths,
            width_step=self.space.width_step,
            removal=self.space.removal and widths,
            sparsities=sparsities,
            pattern=criterion.group,
            whole_blocks=self.space.whole_blocks,
            latency=latency,
        )

    def ladder(self, space: SearchSpace) -> Ladder:
        """Return the budgets that a search of a space covers.

        Raises:
            SettingError: the costs to search against do not fit the space or the budgets.
        """
        return Ladder(space, self.search.against, self.search.down_to)

    def to_yaml(self) -> str:
        """Return the resolved settings as YAML."""
        text: str = yaml.safe_dump(json.loads(self.model_dump_json(by_alias=True)), sort_keys=False)
        return text


def load_config(file: Path | None, overrides: Mapping[str, Any]) -> RunConfig:
    """Read settings from a YAML file and lay others over them.

    Args:
        file: the YAML file; None for defaults alone.
        overrides: dotted keys, e.g. `text.source`, with values that win over the file's.

    Raises:
        SettingError: the file is missing or not YAML, or a setting is unknown or out of range.
    """
    values: dict[str, Any] = {}
    if file is not None:
        try:
            values = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        except OSError:
            raise SettingError(f"A config file must exist, but {str(file)!r} cannot be read; check the path.") from None
        except (yaml.YAMLError, UnicodeDecodeError):
            raise SettingError(f"A config file must be YAML, but {str(file)!r} is not; repair it.") from None
        if not isinstance(values, dict):
            raise SettingError(f"A config file must hold settings by name, but {str(file)!r} does not; see `--help`.")
    for key, value in overrides.items():
        inner = values
        *path, last = key.split(".")
        for part in path:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise SettingError(f"{part} must hold settings by name to set {key}, but is {inner!r}.")
        inner[last] = value
    if isinstance(values.get("budget"), str):
        values["budget"] = [values["budget"]]
    return parse_config(values)


def parse_config(values: Mapping[str, Any]) -> RunConfig:
    """Check settings.

    Raises:
        SettingError: a setting is unknown, missing or out of range.
        BudgetError: a budget cannot be read.
    """
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        raise SettingError(_explain(error)) from None
    _ = config.budgets, config.criterion.criterion, config.search.rule  # refuse early
    return config


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = ", ".join(_known_settings(first["loc"][:-1]))
        return f"A setting must be one of {known}, but {name!r} is none of them; remove or rename it."
    if name == "database":  # what stands there may hold a password
        return (
            "The setting 'database' must be the name of the environment variable that holds the URL, but is none; "
            f"export {VARIABLE}=postgresql://USER@HOST/NAME and write {VARIABLE}."
        )
    if first["type"] == "missing":
        return f"The setting {name!r} must be given, but is missing; add it, e.g. --{name} on the command line."
    return f"The setting {name!r} must be valid, but is {first.get('input')!r}: {first['msg']}; change it."


def _known_settings(path: Sequence[int | str]) -> list[str]:
    model: Any = RunConfig
    for part in path:
        model = model.model_fields[str(part)].annotation
    return [field.alias or name for name, field in model.model_fields.items()]
