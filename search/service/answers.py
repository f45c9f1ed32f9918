"""What the service answers, as its documentation tells it."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from search.service.queue import Job


class Refused(BaseModel):
    """Why a request was refused: the rule, the value and the way out."""

    detail: str


class JobTold(BaseModel):
    """A job as it is now."""

    id: str
    kind: str
    title: str
    run: str
    state: Literal["queued", "running", "succeeded", "failed", "cancelled"]
    created_at: float = Field(description="Seconds since the epoch, as are the other two.")
    started_at: float | None
    finished_at: float | None
    progress: dict[str, Any] | None = Field(description="What it told last: stage, done, total, unit, note, said.")
    reason: str | None = Field(description="Why it failed.")
    request: dict[str, Any]
    commands: list[list[str]] = Field(description="The same on the command line, as arguments of `secateur`.")

    @classmethod
    def of(cls, job: Job) -> "JobTold":
        """Return a job as it is told."""
        return cls(**{name: getattr(job, name) for name in cls.model_fields})


class RunTold(BaseModel):
    """A run in a line."""

    name: str
    model: str
    budgets: list[str]
    state: Literal["finished", "unfinished", "damaged"]
    pairs: int = Field(description="Architectures measured so far on the search text.")
    headline: str | None = Field(description="What was found, in a sentence.")
    began_at: float
    finished_at: float | None


class Layer(BaseModel):
    """What is kept of a layer."""

    kv_groups: int = Field(ge=0)
    mlp_width: int = Field(ge=0)
    attention_sparsity: float = Field(0.0, ge=0, lt=1)
    mlp_sparsity: float = Field(0.0, ge=0, lt=1)


class ArchitectureTold(BaseModel):
    """An architecture: one entry for each layer of the dense model."""

    layers: list[Layer] = Field(min_length=1, max_length=1000)


class Change(BaseModel):
    """A gene of one layer, changed."""

    layer: int = Field(ge=0, le=999)
    gene: Literal["kv_groups", "mlp_width", "attention_sparsity", "mlp_sparsity"]
    value: float = Field(ge=0)


class PredictAsked(BaseModel):
    """Architectures to predict, in one of two forms, or changes to the winner; nothing at all asks for the winner."""

    architectures: list[ArchitectureTold] | None = Field(None, min_length=1, max_length=5000)
    genes: list[list[list[float]]] | None = Field(
        None,
        min_length=1,
        max_length=20_000,
        description="The same in short, each layer as kv_groups, attention_sparsity, mlp_width, mlp_sparsity.",
    )
    changes: list[Change] = Field([], max_length=1000, description="Made to each architecture before it is asked for.")
    targets: list[str] = Field([], max_length=20, description="What to predict; default all that the run can.")


class TargetTold(BaseModel):
    """What one predictor says of each architecture, in the order they were asked."""

    title: str
    value: list[float]
    lower: list[float] = Field(description="Of the 90 % interval.")
    upper: list[float]
    protocol: str
    winner: float | None = Field(description="What it says of the run's winner.")


class PredictTold(BaseModel):
    """Predictions."""

    run: str
    count: int
    targets: list[TargetTold]
    costs: dict[str, list[float]] = Field(description="By metric, of each architecture.")
    dense: dict[str, float] = Field(description="The same of the dense model.")
    within: list[bool] = Field(description="Whether it meets the run's budgets.")


class Named(BaseModel):
    """Names that requests may use."""

    names: list[str]
    hub: bool = Field(description="Whether the hub's may be used as well.")


class MeasuredTold(BaseModel):
    """A measured architecture."""

    architecture: ArchitectureTold
    measured: dict[str, Any]


class ExportTold(BaseModel):
    """An export of a run."""

    name: str
    format: str
    bytes: int
    files: list[str]
    recovered: bool
