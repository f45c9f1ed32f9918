"""Commands about recovered models: `recover`, `merge` and `draft`."""

from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer
from rich.console import Console

from search.commands.arguments import Json, app, print_json
from search.progress import Reporter
from space import SettingError

Device = Annotated[str, typer.Option(help="Where the model is, e.g. cuda.")]
Dense = Annotated[str | None, typer.Option(help="The dense model; default what the export says it was made of.")]


@app.command(epilog="Example: secateur recover runs/smollm2-135m-parameters-0.8 --data gsm8k.jsonl --steps 300")
def recover(
    source: Annotated[Path, typer.Argument(metavar="RUN_OR_FOLDER", help="A finished run or a pruned model's folder.")],
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Examples to learn from, repeatable: a .jsonl or .parquet file of instructions and answers, gsm8k, or "
            "hub:DATASET."
        ),
    ] = None,
    answers: Annotated[
        str,
        typer.Option(
            help="self: the dense model writes the answers again, and those that pass the check are learned; given: "
            "as they are."
        ),
    ] = "self",
    check_working: Annotated[
        bool, typer.Option("--check-working", help="Keep a rewrite only if the sums on its way to a number hold, too.")
    ] = False,
    text: Annotated[
        list[str] | None,
        typer.Option(
            help="Plain text to learn from, repeatable: self, which the dense model writes, a .txt, .jsonl or "
            ".parquet file, hub:DATASET, or c4, wikipedia and others by name. Default self where there is no --data."
        ),
    ] = None,
    steps: Annotated[int, typer.Option(help="Steps at most; it stops where held-out loss rises.", min=1)] = 400,
    step_tokens: Annotated[int, typer.Option(help="Tokens of a step.", min=8)] = 1024,
    rank: Annotated[int, typer.Option(help="Of the low-rank additions (LoRA); 0 trains all weights.", min=0)] = 16,
    learning_rate: Annotated[
        float | None, typer.Option(help="At its highest; default 5e-4 of additions, 5e-5 of all weights.")
    ] = None,
    distill: Annotated[
        float | None,
        typer.Option(
            help="Share of the loss that is the divergence from the dense model; default 1 on plain text alone, else 0."
        ),
    ] = None,
    temperature: Annotated[float, typer.Option(help="Of that divergence.")] = 1.0,
    examples: Annotated[int | None, typer.Option(help="Examples to draw of each --data; default all.", min=1)] = None,
    report: Annotated[
        str | None, typer.Option(help="Text to measure on before and after; default the run's report text.")
    ] = None,
    dense: Dense = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to make; default recovered/ in a run, or FOLDER-recovered.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of every random draw.", min=0)] = 0,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Fine-tune a pruned model so that it gets back what pruning cost, and export it.

    A recovery that was stopped goes on with the same command. Without --data and --text nothing is needed but the dense
    model: the pruned one learns its predictions on text that it writes.
    """
    from search.recovery import recover as run_recovery
    from search.recovery_data import Answers, RecoverySettings

    if answers not in get_args(Answers):
        raise SettingError(f"--answers must be {' or '.join(get_args(Answers))}, but is {answers!r}; choose one.")
    from evaluator.recovery.finetune import Recipe

    texts = tuple(text or (() if data else ("self",)))
    recipe = Recipe(
        steps=steps,
        step_tokens=step_tokens,
        rank=rank,
        learning_rate=learning_rate,
        distillation=(0.0 if data else 1.0) if distill is None else distill,
        temperature=temperature,
        seed=seed,
    )
    settings = RecoverySettings(
        recipe,
        data=tuple(data or ()),
        answers=cast("Answers", answers),
        check_working=check_working,
        examples=examples,
        text=texts,
        report=report,
    )
    found = run_recovery(source, settings, out=out, dense_name=dense, device=device, reporter=Reporter(quiet=as_json))
    print_json(found) if as_json else _print_recovery(found, Console(highlight=False))


def _print_recovery(found: dict[str, Any], console: Console) -> None:
    told = found["recovery"]
    looks = [loss for _, loss in told["looks"]]
    console.print(
        f"{told['steps']} steps on {told['learned_tokens']:,} learned tokens in {told['seconds']:,.0f} s; weights of "
        f"step {told['best_step']}" + (f"; held-out loss {looks[0]:.3f} to {min(looks):.3f}" if len(looks) > 1 else ""),
        soft_wrap=True,
    )
    if "measured" in told:
        measured, less = told["measured"], told["measured"]["less"]
        values = (
            f"{name} {measured[name]['perplexity']:.2f} ± {measured[name]['perplexity_standard_error']:.2f}"
            for name in ("dense", "before", "after")
        )
        console.print(f"Perplexity on {measured['text']}: {', '.join(values)}", markup=False, soft_wrap=True)
        console.print(
            f"After against before: {less['perplexity_change']:+.1%} ± {less['perplexity_change_standard_error']:.1%}; "
            f"KL from the dense model {measured['before']['kl']:.3f} to {measured['after']['kl']:.3f}",
            soft_wrap=True,
        )
    console.print(found["folder"], markup=False, soft_wrap=True)


@app.command(epilog="Example: secateur merge math-recovered chat-recovered --out merged --share 0.5")
def merge(
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="Recovered models of one shape.")],
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    method: Annotated[str, typer.Option(help="slerp, of two models, or average.")] = "slerp",
    share: Annotated[float, typer.Option(help="Of the second model, with slerp.")] = 0.5,
    start: Annotated[
        Path | None,
        typer.Option(help="What the models were before they were recovered: slerp then turns what each has learned."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Merge recovered models into one: between two on the sphere (SLERP), or the mean of several."""
    from search.merging import merge_folders

    target = merge_folders(folders, out, method, share, start)
    print_json({"folder": str(target)}) if as_json else print(target)


@app.command(epilog="Example: secateur draft runs/smollm2-135m-parameters-0.8/recovered --prompts questions.jsonl")
def draft(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A pruned model, recovered or not.")],
    dense: Dense = None,
    prompts: Annotated[
        str | None,
        typer.Option(help="Instructions, as --data of recover, or a text, of which beginnings are continued."),
    ] = None,
    count: Annotated[int, typer.Option(help="Prompts.", min=2)] = 16,
    tokens: Annotated[int, typer.Option(help="Tokens to write for each.", min=2)] = 96,
    draft_tokens: Annotated[int, typer.Option(help="Tokens that the draft proposes at once.", min=1)] = 5,
    seed: Annotated[int, typer.Option(help="Of the draw of prompts.", min=0)] = 0,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Measure a pruned model as the draft of its dense model: tokens accepted, and tokens per second with and without.

    The text is the dense model's own in both ways. A draft is no gain unless it is several times faster than what it
    drafts for.
    """
    from search.drafting import draft_folder

    found = draft_folder(folder, dense, prompts, count, tokens, draft_tokens, seed, device, Reporter(quiet=as_json))
    if as_json:
        print_json(found)
        return
    print(
        f"Accepted {found['acceptance_rate']:.1%} ± {found['acceptance_rate_standard_error']:.1%} of the drafted "
        f"tokens, {found['mean_accepted_length']:.2f} ± {found['mean_accepted_length_standard_error']:.2f} tokens a "
        f"pass of the dense model\n{found['tokens_per_second']:.1f} tokens/s with the draft, "
        f"{found['tokens_per_second_plain']:.1f} without: {found['speedup']:.2f} times as fast"
    )
