"""What a short fine-tuning gives back to pruned models, as models, as drafts, and to their ranking.

    python -m tests.benchmarks.recovery [--quick] [--seed N] [--device NAME] [--part NAME ...] [--variant NAME ...]
                                        [--kept]

SmolLM2-135M-Instruct without 5 of its 30 blocks (those that turn the residual stream least, arXiv 2403.17887), and an
architecture of the same FLOPs that a search found on WikiText-2 validation or, `searched_own`, on text that the dense
model wrote; recovered in up to 400 steps of 1,024 tokens. Examples are 2,000 of GSM8K's training set; text is the dense
model's own. Accuracy is of ARC-Easy, PIQA, OpenBookQA, WinoGrande and BoolQ, zero-shot, 400 items each, the same for
all; perplexity is on 16,384 tokens of WikiText-2 test. What is finished is kept in the result, so that the benchmark
goes on where it was stopped; trained models lie in runs/benchmark-recovery.

| part | what |
| --- | --- |
| variants | the models, each measured |
| answers | how unlikely 100 answers of GSM8K's test set are to each, in nats a token |
| drafts | some as drafts of the dense model: 16 questions of GSM8K's test set, 96 tokens each, 5 drafted at once |
| ranking | 30 architectures of the same FLOPs before and after 20 steps: 15 of narrower layers, 15 without blocks |

| figure | meaning |
| --- | --- |
| `retained` | mean accuracy as a share of the dense model's, and its standard error over items; with its parts |
| `flips` | items, as a mean over tasks, that went from right to wrong or back against the dense model |
| `less` | points of mean accuracy of one variant less another, paired by items, and the standard error |
| `answer_nll` | nats a token of GSM8K's test answers, and the standard error over answers |
| `acceptance_rate`, `mean_accepted_length` | of drafts, by variant, each with its standard error over prompts |
| `kendall_tau_before_after` | of the KL before and after, over all, and over each kind of architecture; each with its |
| | standard error, by leaving out one architecture after the other |
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from evaluator import DenseModel, Evaluator, PairStore, Texts, allocation, standalone
from evaluator.accuracy import Reference, make_reference
from evaluator.pruning.depth import angular_distances
from evaluator.recovery.drafting import measure_drafting
from evaluator.recovery.examples import encode_examples, read_examples
from evaluator.recovery.finetune import Recipe
from evaluator.recovery.objective import Objective
from evaluator.recovery.student import measure_student, open_student
from evaluator.sources import tokenise
from search.drafting import prompt_ids
from search.environment import commit, device_name
from search.export import huggingface
from search.export.place import MARK
from search.merging import merge_into
from search.progress import Reporter
from search.recovery import train
from search.recovery_data import RecoverySettings, gather_samples
from space import Architecture, Criterion
from tests.benchmarks.record import DATA, RESULTS, ROOT, finish
from tests.benchmarks.recovery_figures import figures_of
from tests.benchmarks.recovery_ranking import WIKITEXT, ranking, searched_folder
from tests.benchmarks.search import open_dense
from tests.benchmarks.tasks import log_likelihoods, read_items

TASKS = ("arc_easy", "piqa", "openbook_qa", "winogrande", "boolq")
GSM8K = {name: str(DATA / "tasks" / "gsm8k" / f"{name}.jsonl") for name in ("train", "test")}
LENGTH, REPORT, ITEMS, EXAMPLES, STEPS, REMOVED = 512, 32, 400, 2000, 400, 5
PROMPTS, DRAFTED = 16, 96
PARTS = ("variants", "answers", "drafts", "ranking")
# The folder of a search and the text it is given: WikiText-2 validation, or what the dense model writes itself.
SEARCHES = {"searched": ("search", WIKITEXT), "searched_own": ("search-own", "self")}


@dataclass(frozen=True, slots=True)
class Variant:
    """A model of the table: a base, and how it is recovered or of which others it is the merger."""

    base: str
    settings: RecoverySettings | None = None
    merged: tuple[str, ...] = ()


def variants(seed: int, quick: bool) -> dict[str, Variant]:
    """Return the models of the table, in the order they are made."""
    recipe = Recipe(steps=4 if quick else STEPS, evaluate_every=50, seed=seed)
    length = 64 if quick else LENGTH
    examples = RecoverySettings(recipe, data=(GSM8K["train"],), examples=20 if quick else EXAMPLES, text_length=length)
    given, by_number = replace(examples, answers="given"), replace(examples, answers="self")
    own = replace(by_number, check_working=True)
    distilled = RecoverySettings(replace(recipe, distillation=1.0), text=("self",), text_length=length)
    return {
        "blocks": Variant("blocks"),
        "blocks_given": Variant("blocks", given),
        "blocks_self": Variant("blocks", own),
        "blocks_self_by_number": Variant("blocks", by_number),
        "blocks_distilled": Variant("blocks", distilled),
        "blocks_slerp": Variant("blocks", merged=("blocks_self_by_number", "blocks_distilled")),
        "searched": Variant("searched"),
        "searched_self_by_number": Variant("searched", by_number),
        "searched_distilled": Variant("searched", distilled),
        "searched_own": Variant("searched_own"),
        "searched_own_self_by_number": Variant("searched_own", by_number),
    }


def main() -> None:
    """Make and measure what is missing and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small model, in a minute or two, not recorded")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="where the models are, e.g. cuda")
    parser.add_argument("--part", action="append", choices=PARTS, help="which; all without")
    parser.add_argument("--variant", action="append", help="which models; all without")
    parser.add_argument("--kept", action="store_true", help="measure nothing more: the figures of what is there")
    options = parser.parse_args()
    name = f"seed-{options.seed}{'-quick' if options.quick else ''}"
    bench = _Bench(options, ROOT / "runs" / "benchmark-recovery" / name)
    parts = () if options.kept else options.part or PARTS
    wanted = options.variant or variants(options.seed, options.quick)
    if "variants" in parts:
        bench.row("dense", lambda: bench.measure(bench.dense))
        for variant in wanted:
            bench.row(variant, lambda variant=variant: bench.measure(bench.model(variant)))
    if "answers" in parts:
        for variant in ("dense", *wanted):
            bench.row(f"answers {variant}", lambda variant=variant: bench.answers(variant))
    if "drafts" in parts:
        for variant in ("blocks", "blocks_self_by_number", "blocks_distilled", "searched", "searched_distilled"):
            bench.row(f"draft {variant}", lambda variant=variant: bench.draft(variant))
    if "ranking" in parts:
        bench.row("ranking", bench.ranking)
    bench.finish()


class _Bench:
    """The dense model, what is measured on, and the rows so far."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.seed, self.quick, self.device, self.folder = options.seed, options.quick, options.device, folder
        folder.mkdir(parents=True, exist_ok=True)
        self.dense = open_dense(options.quick, options.device)
        file = RESULTS / "recovery.json"
        found = {} if self.quick or not file.exists() else json.loads(file.read_text())
        self._seeds: dict[str, dict[str, Any]] = found.get("rows", {})
        self.rows = self._seeds.setdefault(str(self.seed), {})
        length, report = (64, 4) if self.quick else (LENGTH, REPORT)
        text = tokenise(self.dense, str(DATA / "text" / "wikitext2.test.txt"))
        self.text = text[: report * length].view(report, length)
        self._reference: Reference | None = None
        self.items = {task: read_items(task, 10 if self.quick else ITEMS, 0) for task in TASKS}

    @property
    def reference(self) -> Reference:
        """The dense model's predictions on the text that is reported."""
        if self._reference is None:
            self._reference = make_reference(self.dense, self.text)
        return self._reference

    def row(self, name: str, make: Callable[[], dict[str, Any]]) -> None:
        """Add a row, unless there is one; all are kept at once."""
        if name not in self.rows:
            self.rows[name] = {**make(), "commit": commit(), "device": device_name(self.dense)}
            print(f"{name}: {json.dumps({k: v for k, v in self.rows[name].items() if k != 'right'})[:400]}", flush=True)
            if not self.quick:
                self.finish()

    def finish(self) -> None:
        """Keep the rows of all seeds and print the figures of this one."""
        finish("recovery", figures_of(self.rows), {"seed": self.seed, "rows": self._seeds}, self.quick)

    def model(self, name: str) -> DenseModel:
        """Return a model of the table, made now or before."""
        folder, variant = self.folder / name, variants(self.seed, self.quick)[name]
        if (folder / "config.json").exists():
            return open_student(folder, device=self.device)
        told: dict[str, Any] = {"model": self.dense.name}
        if variant.merged:
            students = [self.model(each) for each in variant.merged]
            merge_into(students, "slerp", 0.5)
            student = students[0]
            told["merged"] = {"method": "slerp", "of": list(variant.merged), "share": 0.5}
        elif variant.settings is None:
            return self._base(name)
        else:
            student = self.model(variant.base)
            cache, reporter = self.folder / "written", Reporter()
            learned = gather_samples(student, self.dense, variant.settings, cache, reporter)
            recovery = train(student, self.dense, learned, variant.settings.recipe, folder.with_suffix(".t"), reporter)
            recipe = variant.settings.recipe.to_dict()
            told["recovery"] = {"recipe": recipe, **learned.told, **recovery.to_dict()}
        huggingface.write_folder(student.model, student, folder, told)
        return open_student(folder, device=self.device)

    def _base(self, name: str) -> DenseModel:
        """Return the pruned model that nobody recovered yet."""
        if name in SEARCHES:
            folder, source = SEARCHES[name]
            like = self.without_blocks()
            found = searched_folder(self.dense, self.folder / folder, like, self.seed, self.quick, source)
            return open_student(found, device=self.device)
        store = PairStore(self.folder / "pairs.db")
        judge = Evaluator(
            self.dense,
            Texts({"calibrate": self.text[:1]}, {"calibrate": ""}),  # blocks go whole: by no statistics
            store,
            criterion=Criterion("magnitude", "magnitude", "none"),
        )
        architecture = self.without_blocks()
        judge.surgeon.install(architecture)
        record = {"model": self.dense.name, "architecture": architecture.to_dict()}
        model = standalone(self.dense, architecture)
        huggingface.write_folder(model, self.dense, self.folder / name, record)
        judge.surgeon.restore()
        store.close()
        return open_student(self.folder / name, device=self.device)

    def without_blocks(self) -> Architecture:
        """Return the architecture without the consecutive blocks that turn the residual stream least on C4."""
        layout, length = self.dense.layout, self.text.shape[1]
        count = max(1, REMOVED * layout.layers // 30)
        stream = tokenise(self.dense, str(DATA / "text" / "c4.jsonl"))[: 16 * length].view(16, length)
        batches = [batch.to(self.dense.model.device) for batch in stream.split(4)]
        distances = angular_distances(self.dense.decoder, list(self.dense.layers), batches, count)
        return allocation.without_blocks(layout, allocation.least_turning(distances, count))

    def measure(self, model: DenseModel) -> dict[str, Any]:
        """Return a model's row."""
        measured = measure_student(model, self.reference, "WikiText-2 test", "none")
        right = {task: self._right(model, items) for task, items in self.items.items()}
        file = Path(model.name) / MARK
        told = json.loads(file.read_text()) if file.exists() else {}
        if "recovery" in told:
            told["recovery"].pop("losses")
        return {
            "perplexity": round(measured.perplexity, 3),
            "perplexity_standard_error": round(measured.perplexity_standard_error, 3),
            "kl": round(measured.kl, 4),
            "kl_standard_error": round(measured.kl_standard_error, 4),
            "accuracy": {task: round(float(np.mean(own)), 4) for task, own in right.items()},
            "parameters": sum(weight.numel() for weight in model.model.parameters()),
            "recovery": told.get("recovery"),
            "right": {task: "".join("01"[each] for each in own) for task, own in right.items()},
        }

    def _right(self, model: DenseModel, items: Sequence[Any]) -> list[bool]:
        sums = iter(log_likelihoods(model, [pair for choices, _ in items for pair in choices]))
        return [bool(np.argmax([next(sums) for _ in choices]) == gold) for choices, gold in items]

    def answers(self, variant: str) -> dict[str, Any]:
        """Return how unlikely given answers are to a model, in nats a token."""
        model = self.dense if variant == "dense" else self.model(variant)
        questions = read_examples(GSM8K["test"], 10 if self.quick else 100)
        samples = encode_examples(model.tokenizer, questions, 1024).samples
        objective = Objective(model)
        own = np.array([objective.mean([sample], 1024) for sample in samples])
        weights = np.array([len(sample.tokens) - sample.first for sample in samples], dtype=float)
        mean = float(np.average(own, weights=weights))
        error = np.std(weights * (own - mean), ddof=1) / np.sqrt(len(own)) / weights.mean()  # of a ratio
        return {"answer_nll": round(mean, 4), "answer_nll_standard_error": round(float(error), 4), "answers": len(own)}

    def draft(self, variant: str) -> dict[str, Any]:
        """Return what a model is worth as a draft of the dense one."""
        count, tokens = (2, 12) if self.quick else (PROMPTS, DRAFTED)
        ids = prompt_ids(self.dense, GSM8K["test"], count, self.seed)
        return measure_drafting(self.dense, self.model(variant).model, ids, tokens).to_dict()

    def ranking(self) -> dict[str, Any]:
        """Return how a short recovery changes which architecture is the better one."""
        return ranking(self.dense, self.folder / "ranking", self.without_blocks(), self.seed, self.quick)


if __name__ == "__main__":
    main()
