"""What can be asked of the service, checked as it comes in, and the commands that it comes to."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from search.config import RunConfig
from search.folder import RunFolder, write_text
from search.service.gate import Gate
from space import ExportError, RunFolderError

RunName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$", examples=["smollm2-135m-parameters-0.8"])]
Source = Annotated[str, Field(min_length=1, max_length=500)]
Sources = Annotated[tuple[Source, ...], Field(max_length=20)]
Fingerprint = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
_MOST_COUNT = 1_000_000

Commands = list[list[str]]


class Asked(BaseModel):
    """A request to queue a job."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class RunAsked(Asked):
    """Search the best pruned model within a budget; goes on where the run is there already."""

    kind: Literal["run"]
    name: RunName | None = Field(None, description="Of the run; default its model and budgets.")
    settings: RunConfig = Field(examples=[{"model": "smollm2-135m", "budget": ["parameters=0.8"]}])

    def prepared(self, gate: Gate, folder: Path) -> tuple[str, str, Commands]:
        """Return title, run and commands of the job, which may leave files in its folder.

        Raises:
            SecateurError: it cannot be done, or is not allowed.
        """
        config = gate.settings(self.settings)
        name = gate.run_name(config, self.name)
        run = gate.run(name)
        RunFolder(run).check(config)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "config.yaml", config.to_yaml())
        command = ["run", f"--config={folder / 'config.yaml'}", f"--out={run}", "--json"]
        return f"Search {Path(config.model).name}, {', '.join(config.budget)}", name, [command]


class RecoverAsked(Asked):
    """Fine-tune a finished run's winner and export it as recovered/ in the run."""

    kind: Literal["recover"]
    run: RunName
    data: Sources = ()
    answers: Literal["self", "given"] = "self"
    check_working: bool = False
    text: Sources = ()
    steps: int = Field(400, ge=1, le=_MOST_COUNT)
    step_tokens: int = Field(1024, ge=8, le=_MOST_COUNT)
    rank: int = Field(16, ge=0, le=4096)
    learning_rate: float | None = Field(None, gt=0, le=1)
    distill: float | None = Field(None, ge=0, le=1)
    temperature: float = Field(1.0, gt=0, le=100)
    examples: int | None = Field(None, ge=1, le=_MOST_COUNT)
    report: Source | None = None
    seed: int = Field(0, ge=0, le=2**31)
    device: str = "cpu"

    def prepared(self, gate: Gate, folder: Path) -> tuple[str, str, Commands]:
        """Return title, run and commands of the job; see `RunAsked.prepared`."""
        run = _finished(gate, self.run)
        given: dict[str, Any] = {
            "data": [gate.text(each) for each in self.data],
            "answers": self.answers,
            "check-working": self.check_working,
            "text": [gate.text(each) for each in self.text],
            "steps": self.steps,
            "step-tokens": self.step_tokens,
            "rank": self.rank,
            "learning-rate": self.learning_rate,
            "distill": self.distill,
            "temperature": self.temperature,
            "examples": self.examples,
            "report": gate.text(self.report) if self.report else None,
            "seed": self.seed,
            "device": gate.device(self.device),
        }
        return f"Recover {self.run}", self.run, [["recover", *_options(given), "--json", "--", str(run)]]


class StudyAsked(Asked):
    """Find out which text a model is best calibrated on."""

    kind: Literal["study"]
    name: RunName
    model: Source
    sources: Sources = ("self", "self-filtered")
    settings: Annotated[tuple[Annotated[str, Field(pattern=r"^[\w.:=-]{1,60}$")], ...], Field(max_length=20)] = ()
    texts: Annotated[tuple[Source, ...], Field(min_length=1, max_length=20)]
    draws: int = Field(5, ge=1, le=100)
    sequences: int = Field(32, ge=1, le=4096)
    sequence_length: int = Field(512, ge=16, le=32768)
    report_sequences: int = Field(32, ge=1, le=4096)
    seed: int = Field(0, ge=0, le=2**31)
    device: str = "cpu"

    def prepared(self, gate: Gate, folder: Path) -> tuple[str, str, Commands]:
        """Return title, run and commands of the job; see `RunAsked.prepared`."""
        given: dict[str, Any] = {
            "model": gate.model(self.model),
            "source": [gate.mixed(each) for each in self.sources],
            "setting": self.settings,
            "text": [gate.text(each) for each in self.texts],
            "draws": self.draws,
            "sequences": self.sequences,
            "sequence-length": self.sequence_length,
            "report-sequences": self.report_sequences,
            "seed": self.seed,
            "device": gate.device(self.device),
            "out": gate.study(self.name),
        }
        title = f"Which text {Path(self.model).name} is best calibrated on"
        return title, f"study {self.name}", [["study", "calibration", *_options(given), "--json"]]


class ExportAsked(Asked):
    """Export a finished run's winner, another member of its Pareto set, or its recovered model."""

    kind: Literal["export"]
    run: RunName
    format: Literal["huggingface", "padded", "gguf"] = "huggingface"
    types: Annotated[tuple[Annotated[str, Field(pattern=r"^[a-z0-9_]{2,10}$")], ...], Field(max_length=9)] = ()
    member: Fingerprint | None = None
    recovered: bool = Field(False, description="The recovered model in place of the winner as it was pruned.")

    def prepared(self, gate: Gate, folder: Path) -> tuple[str, str, Commands]:
        """Return title, run and commands of the job; see `RunAsked.prepared`."""
        source = _finished(gate, self.run)
        given: dict[str, Any] = {"format": self.format, "type": self.types, "member": self.member}
        if self.recovered:
            given["out"] = source / f"recovered-{self.format}"
            source = source / "recovered"
            if not source.is_dir():
                raise ExportError(
                    f"A recovered model must be there to be exported, but {self.run} has none; recover it."
                )
        title = f"Export {self.run} as {self.format}"
        return title, self.run, [["export", *_options(given), "--json", "--", str(source)]]


class GenerateAsked(Asked):
    """Let the dense model and the pruned one continue the same text, side by side."""

    kind: Literal["generate"]
    run: RunName
    prompt: str = Field(min_length=1, max_length=4000)
    tokens: int = Field(60, ge=1, le=500)
    seed: int | None = Field(None, ge=0, le=2**31, description="Samples with it; default the likeliest text.")
    export: RunName = Field("export", description="Which of the run's exports speaks for the pruned model.")

    def prepared(self, gate: Gate, folder: Path) -> tuple[str, str, Commands]:
        """Return title, run and commands of the job; see `RunAsked.prepared`."""
        run = RunFolder(_finished(gate, self.run))
        export = run.path / self.export
        if not (export / "config.json").is_file():
            raise ExportError(
                f"A model that speaks must be a Hugging Face export, but {self.export!r} of {self.run} is none; see "
                "GET /api/runs/RUN/exports."
            )
        options = _options({"tokens": self.tokens, "seed": self.seed, "beside": str(export)})
        return f"Hear {self.run}", self.run, [["generate", *options, "--json", "--", run.config().model, self.prompt]]


JobAsked = Annotated[RunAsked | RecoverAsked | StudyAsked | ExportAsked | GenerateAsked, Field(discriminator="kind")]


def _finished(gate: Gate, name: str) -> Path:
    run = RunFolder(gate.run(name))
    if not run.best_file.exists():
        raise RunFolderError(f"A run must be finished for this, but {name!r} is not; wait for it, or resume its job.")
    return run.path


def _options(given: dict[str, Any]) -> list[str]:
    """Return options as a command takes them; a value is never taken for an option."""
    found = []
    for name, value in given.items():
        values = value if isinstance(value, list | tuple) else [value]
        wanted = [each for each in values if each is not None and each is not False]
        found += [f"--{name}" if each is True else f"--{name}={each}" for each in wanted]
    return found
