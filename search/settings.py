"""The groups of a run's settings, each default written once with its reason."""

from typing import TYPE_CHECKING, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from search.rules import Rule
from space import LATENCY, METRICS, Budget, BudgetError, Criterion, Phase, Update, Weights, Widths

if TYPE_CHECKING:
    from evaluator.recovery.short import ShortRecipe


class Settings(BaseModel):
    """Known by name, and never changed."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TextConfig(Settings):
    """Text for calibrating, searching, validating and reporting; always disjoint."""

    # Text that the model writes itself needs no data, and is close to what the model was trained on.
    source: str = "self"
    # Another text for the report, e.g. a benchmark's test set; None reports on a split of `source`.
    report: str | None = None
    sequence_length: int = Field(512, ge=16)  # tokens
    # Sequences; 16,384 tokens settle Wanda's norms, but four times as many take another 3 to 5 % off the perplexity
    # that the least-squares update leaves (SmolLM2-135M, on WikiText-2 and C4).
    calibrate: int = Field(128, ge=1)
    search: int = Field(8, ge=1)  # sequences; measured several hundred times, so few
    validate_: int = Field(16, ge=1, alias="validate")  # sequences; the finalists are told apart on these
    report_sequences: int = Field(32, ge=1)  # sequences
    # How much the text that matters differs from this one, as a multiple of how much two sequences of this one do: the
    # search trusts differences between layers the less. It needs the sub-blocks measured alone on all of the search
    # text (search.prior_sequences): on two sequences it chose worse than none.
    shift: float = Field(0.0, ge=0)

    @field_validator("shift", mode="before")
    @classmethod
    def _none_is_none(cls, value: object) -> object:
        return 0.0 if value is None else value  # in the settings of earlier runs


class CalibrationConfig(Settings):
    """What the criterion sees: which text, how the model writes its own, and what is left out."""

    # SOURCE or SOURCE=WEIGHT, mixed by weight: self, a .txt, .jsonl or .parquet file, a hub data set. Empty takes the
    # run's text, of which the calibration set then has a part of its own.
    sources: tuple[str, ...] = ()
    set_: str | None = Field(None, alias="set")  # a file that `secateur calibrate` made, instead of sources
    # Sources to choose from, each as above or several joined by + for a mix of equal parts, as in self+c4.jsonl: one
    # more gene of few values, settled before the search by what allocations on the budget lose under each.
    mixes: tuple[str, ...] = ()
    document: int = Field(128, ge=2)  # tokens of a document that the model writes; long ones drift into noise
    temperatures: tuple[float, ...] = Field((1.0,), min_length=1)  # of the documents, by turns
    prefix: str = "openings"  # of each document: openings, bos, token, or a text whose lines' first words it takes
    prefix_tokens: int | None = Field(None, ge=1)  # of the prefix, at most; None: half a document, or 2 of a text
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)  # 0 for all tokens
    repetition_penalty: float = Field(1.0, gt=0)
    # Share dropped, the least likely to the dense model. See docs/calibration.md for what it is worth.
    drop_perplexity: float = Field(0.0, ge=0, lt=1)
    duplicates: bool = True  # whether exact ones are left out
    near_duplicates: float | None = Field(None, gt=0, lt=1)  # Jaccard similarity from which on a unit is one
    language: str | None = None  # ISO 639-1
    shortest: int = Field(0, ge=0)  # tokens of a document of a given text

    @field_validator("sources", "mixes", "temperatures", mode="before")
    @classmethod
    def _one_or_more(cls, value: object) -> object:
        return [value] if isinstance(value, str | int | float) else value

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if self.set_ is not None and self.sources:
            raise ValueError("set is a calibration set that is made already; leave sources out")
        alone = not self.sources and self.set_ is None
        if self.mixes and not (alone and len(set(self.mixes)) == len(self.mixes) > 1):
            raise ValueError("mixes are two or more, different, to choose from; leave sources and set out")
        return self


class SpaceConfig(Settings):
    """Which architectures are allowed."""

    # None: widths, unless a budget on nonzero_parameters asks for sparsity and none on latency for widths as well.
    widths: bool | None = None
    sparsities: tuple[float, ...] | None = None
    width_step: int | None = Field(None, ge=1)  # channels; None takes 128, less for narrow models
    removal: bool = True  # whether attention and MLP sub-blocks may be removed whole
    whole_blocks: bool = False  # whether a layer is removed whole or stays whole, and nothing else is searched

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.whole_blocks and (self.widths or self.sparsities or self.width_step or not self.removal):
            raise ValueError("whole_blocks searches nothing else; leave the other settings of space out")
        return self


class CriterionConfig(Settings):
    """What to prune by; `evaluator.pruning.criteria` says what the names mean."""

    # Near the best of what methods without gradients reach on SmolLM2-135M; benchmark `criteria` compares them.
    widths: Widths = "wanda"
    weights: Weights = "wanda"
    # Costs nothing in size, and takes 8 % of the perplexity off a model at 80 % of its parameters.
    update: Update = "least_squares"
    # N:M, to make sub-blocks sparse by that pattern and no other way: what sparse matrix units can skip.
    pattern: str | None = None

    @field_validator("pattern", mode="before")
    @classmethod
    def _from_sexagesimal(cls, value: object) -> object:
        # YAML 1.1 reads an unquoted 2:4 as the minutes and seconds of 124.
        return f"{value // 60}:{value % 60}" if isinstance(value, int) else value

    @property
    def criterion(self) -> Criterion:
        """The criterion."""
        return Criterion(self.widths, self.weights, self.update, self.pattern)


class LatencyConfig(Settings):
    """What is timed where a budget is on latency."""

    phase: Phase = "prefill"  # of `sequence_length` tokens at once; decode: one more token behind so many
    batch: int = Field(1, ge=1)  # sequences
    sequence_length: int = Field(512, ge=1)  # tokens of each
    # Visits of each model that is timed. More make up for a machine that does other things as well.
    repeats: int = Field(5, ge=1)

    @property
    def conditions(self) -> tuple[Phase, int, int]:
        """Phase, batch and sequence length."""
        return self.phase, self.batch, self.sequence_length


class RecoveryConfig(Settings):
    """What is done before a model is measured to choose by: a few steps of distillation on the calibration set.

    Twenty steps cost as much as fifteen measurements on the default text; the search then aims at the recovered model.
    """

    steps: int = Field(0, ge=0)  # 0 measures models as they are pruned
    step_tokens: int = Field(1024, ge=16)
    rank: int = Field(16, ge=1)  # of the low-rank additions
    learning_rate: float = Field(2e-3, gt=0)

    def recipe(self, seed: int) -> "ShortRecipe | None":
        """Return the recipe, or None where there is none."""
        if not self.steps:
            return None
        from evaluator.recovery.short import ShortRecipe

        return ShortRecipe(self.steps, self.step_tokens, self.rank, self.learning_rate, seed)


class TasksConfig(Settings):
    """Tasks of lm-eval whose accuracy a search aims at, instead of the divergence on its text.

    Models still read the text to be calibrated, and sub-blocks are measured alone on its beginning.
    """

    ask: tuple[str, ...] = ()  # presets, or tasks as NAME or NAME@SHOTS; empty aims at the text
    data: str | None = None  # folder of local files; None takes the hub's
    # Items of each task, at most a quarter of them: measured several hundred times, so few,
    search: int = Field(32, ge=2)
    validate_: int = Field(64, ge=2, alias="validate")  # and those that the finalists are told apart on.
    # Of the others, those of each task that winner, uniform and dense model are compared on in the end; None: all.
    report: int | None = Field(200, ge=2)
    # What is lost: the probability of right answers, by their margins, which tells models apart on few items; or
    # answers, those that are right no more.
    signal: Literal["margin", "answers"] = "margin"

    @field_validator("ask", mode="before")
    @classmethod
    def _one_or_more(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value


KernelsName = Literal["auto", "eager", "compiled", "fused"]
EngineName = Literal["local", "dask"]
DTypeName = Literal["auto", "float32", "bfloat16", "float16"]
StrategyName = Literal["predictor", "random", "evolution", "additive", "tpe", "nsga2"]


class SearchConfig(Settings):
    """How much is measured and searched. More of everything is better and slower."""

    strategy: StrategyName = "predictor"  # the others are what it is compared with, see `search.strategies`
    # Tokens through the decoder that the strategy may spend, a backward pass counting two forward; None lets the
    # predictor end by its rounds, and gives the others what the predictor's plan would take.
    tokens: int | None = Field(None, ge=1)
    # Sequences at the beginning of the search text on which sub-blocks are measured alone, at most all of them. That is
    # where slopes begin, which soon know better, so None takes 1; or all where they are to be compared (text.shift).
    prior_sequences: int | None = Field(None, ge=1)
    random_pairs: int = Field(8, ge=1)  # drawn over the whole budget surface: the predictor's view from afar
    profile_pairs: int = Field(8, ge=0)  # smooth over depth: what single changes cannot show
    guided_pairs: int = Field(24, ge=0)  # near the best that slopes led to: where the search will go
    # Wander, fit, plan, measure the best, at most so often: a search ends by itself when a round promises little. In
    # benchmark `search` they win 1 to 3 % in perplexity over the descent before them; more rounds, more.
    rounds: int = Field(5, ge=1)
    picks: int = Field(3, ge=1)  # architectures measured per round on the predictor's word
    averages: int = Field(3, ge=0)  # and averages of the best measured, which hold better on other text
    generations: int = Field(48, ge=1)  # bred for a round's plan, of `candidates` each
    candidates: int = Field(1024, ge=16)  # architectures the predictor screens at once
    finalists: int = Field(12, ge=1)  # half of them averages; the best on the validation text wins
    refine: bool = True  # whether the predictor cuts away, before each round, what cannot be in a good model
    # Whether backward passes at the best, each the cost of three measurements, tell where to go on; None takes them
    # unless models are recovered before they are measured or answer items of tasks, which slopes know nothing of.
    slopes: bool | None = None
    gate: float = Field(0.4, ge=-1, le=1)  # held-out Kendall tau below which more pairs are measured first
    # Costs to trade the loss against, metrics as in budgets: the search then seeks the Pareto set. Of four objectives
    # nearly all that is measured is in the set already, so no more costs than three.
    against: tuple[str, ...] = Field((), max_length=3)
    # Share of the dense model's cost in each of them down to which the set reaches. None takes the middle between the
    # smallest architecture and the dense one: with half of what can go gone, little is left to choose from.
    down_to: float | None = Field(None, gt=0, lt=1)
    winner: str = "lowest_kl"  # who of the set wins: lowest_kl, knee or cheapest=SHARE, see `search.rules`

    @field_validator("against", mode="before")
    @classmethod
    def _one_or_more(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @field_validator("against")
    @classmethod
    def _known_costs(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for metric in value:
            try:
                Budget.parse(f"{metric}=1")
            except BudgetError:
                raise ValueError(
                    f"{metric} is no metric of a budget; the metrics are {', '.join((*METRICS, LATENCY))}"
                ) from None
        if len(set(value)) < len(value):
            raise ValueError("a metric counts once; leave the other out")
        return value

    @model_validator(mode="after")
    def _rule_and_costs(self) -> Self:
        if self.against:
            if self.strategy == "evolution":
                raise ValueError(
                    "evolution improves one architecture under one budget; with against, search by predictor, "
                    "additive, random, tpe or nsga2"
                )
        elif self.winner != "lowest_kl" or self.down_to is not None:
            raise ValueError("winner and down_to need costs to weigh the loss against; give search.against")
        return self

    @property
    def rule(self) -> Rule:
        """The rule by which one architecture wins, parsed."""
        return Rule.parse(self.winner)

    @model_validator(mode="after")
    def _enough_pairs(self) -> Self:
        if not self.model_fields_set & {"random_pairs", "profile_pairs", "guided_pairs"}:
            return self  # the defaults are enough, and the libraries of a predictor take seconds to load
        from predictor import FEWEST_PAIRS

        if self.random_pairs + self.profile_pairs + self.guided_pairs < FEWEST_PAIRS:
            raise ValueError(
                f"random_pairs, profile_pairs and guided_pairs must add up to {FEWEST_PAIRS} or more to fit a predictor"
            )
        return self
