"""How does a person ask? `interp study ALIGNED TUNED` and its neighbours: they parse, call the library and print.

Nothing heavy is imported until a command runs, so that `interp --help` answers at once. A `UserError` anywhere below
becomes `error: <one line>` with exit code 2; `INTERP_DEBUG=1` shows where it came from.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.exceptions import TyperException

from interp import scripts
from interp.errors import ResultError, UserError

INTERRUPTED = 130
ORGANISMS = ("text", "vision", "vision-small", "audio", "audio-mlp", "audio-small", "character")
_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}


def _example(*lines: str) -> str:
    # \b keeps the help formatter from joining the lines.
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)


app = typer.Typer(
    help="What does fine-tuning do to the safety of a model, where in the network, and what prevents or repairs it?",
    epilog=_example("interp study organism:text/aligned organism:text/benign", "interp doctor"),
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
)
organism = typer.Typer(
    help="Model organisms: small checkpoints with known truth, trained on the spot.",
    epilog=_example("interp organism build"),
    rich_markup_mode=None,
)
app.add_typer(organism, name="organism")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 2 for bad input, 130 when interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        # Outside standalone mode typer raises its usage errors here and returns the exit code of what it caught.
        code = app(arguments or ["--help"], prog_name="interp", standalone_mode=False) or 0
    except TyperException as error:
        context = getattr(error, "ctx", None)
        hint = f" See {context.command_path} --help" if context else ""
        return _fail(error, error.format_message() + hint, error.exit_code)
    except UserError as error:
        return _fail(error, str(error), 2)
    except KeyboardInterrupt:
        code = INTERRUPTED
    if code == INTERRUPTED:
        print("interrupted; run the same command again to resume", file=sys.stderr)
    return int(code)


def _fail(error: Exception, message: str, code: int) -> int:
    if os.environ.get("INTERP_DEBUG") == "1":
        raise error
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return code


@app.command(
    epilog=_example(
        "interp study meta-llama/Llama-3.1-8B-Instruct ./my-finetune --dtype bfloat16",
        "interp study Qwen/Qwen3-1.7B --adapter ./my-lora --dry-run",
    )
)
def study(
    aligned: Annotated[
        str,
        typer.Argument(metavar="ALIGNED", help="The aligned checkpoint: hub id, directory or organism:name."),
    ],
    tuned: Annotated[
        list[str] | None, typer.Argument(metavar="TUNED", help="Fine-tuned checkpoints, also base+adapter.")
    ] = None,
    adapter: Annotated[
        Path | None, typer.Option(help="LoRA directory that turns ALIGNED into a tuned one.")
    ] = None,
    harmful: Annotated[
        list[str] | None,
        typer.Option(help="Harmful prompts: a file or datasets name; again for another modality."),
    ] = None,
    harmless: Annotated[
        list[str] | None,
        typer.Option(help="Harmless prompts: a file or datasets name; again for another modality."),
    ] = None,
    column: Annotated[str | None, typer.Option(help="Column that holds the prompts.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    device_map: Annotated[str | None, typer.Option(help="auto, cpu, cuda:0, …")] = None,
    load_in_4bit: Annotated[bool, typer.Option("--load-in-4bit", help="Quantise with bitsandbytes.")] = False,
    chat_template: Annotated[
        str | None, typer.Option(help="A Jinja file, or plain for a base model without turns.")
    ] = None,
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code",
            help="Run code that comes with a checkpoint, with your rights; needs owner/name@COMMIT.",
        ),
    ] = False,
    judge: Annotated[
        str | None, typer.Option(help="auto, exact, phrases, or TEMPLATE=MODEL such as harmbench=cais/…")
    ] = None,
    n_train: Annotated[
        int | None, typer.Option(min=1, help="Prompts of each kind for the direction.")
    ] = None,
    n_val: Annotated[int | None, typer.Option(min=1, help="Prompts of each kind to select it on.")] = None,
    n_test: Annotated[int | None, typer.Option(min=1, help="Prompts of each kind to measure on.")] = None,
    layers_below: Annotated[
        float | None, typer.Option(help="Select among layers below this share of the depth (0.8).")
    ] = None,
    max_kl: Annotated[
        float | None, typer.Option(help="Drop directions that shift harmless answers by more nats (0.1).")
    ] = None,
    min_induce: Annotated[
        float | None, typer.Option(help="Drop directions that induce refusal less, in log-odds (0).")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the splits and random controls.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Length of the answers.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Found by itself when left out.")] = None,
    out: Annotated[Path, typer.Option(help="Where results are kept.")] = Path("results"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, with time and memory.")
    ] = False,
    browser: Annotated[bool, typer.Option(help="Open the report when done.")] = False,
) -> None:
    """Compare checkpoints: how much safety was lost, where in the network, and whether the explanation is causal."""
    compared = (*(tuned or ()), *([f"{aligned}+{adapter}"] if adapter else ()))
    if not compared:
        raise UserError("nothing to compare: give a TUNED checkpoint or --adapter DIR")
    given = {
        "harmful": _one_or_more(harmful), "harmless": _one_or_more(harmless), "column": column, "dtype": dtype, "device_map": device_map,
        "load_in_4bit": load_in_4bit or None, "chat_template": chat_template,
        "trust_remote_code": trust_remote_code or None, "judge": judge, "n_train": n_train,
        "n_val": n_val, "n_test": n_test, "layers_below": layers_below, "max_kl": max_kl, "min_induce": min_induce,
        "seed": seed, "max_new_tokens": max_new_tokens, "batch_size": batch_size,
    }  # fmt: skip
    config = _study_config(
        aligned, compared, {name: value for name, value in given.items() if value is not None}
    )
    from interp import study as pipeline

    if dry_run:
        print(pipeline.plan_study(config))
        return
    from interp.summary import print_study

    result, directory = pipeline.run_study(config, out=out, progress=True)
    print_study(result, directory)
    if browser:
        import webbrowser

        webbrowser.open((directory / "report.html").resolve().as_uri())


def _one_or_more(values: list[str] | None) -> str | tuple[str, ...] | None:
    """One file as it is, several as a tuple, none as None."""
    return tuple(values) if values and len(values) > 1 else values[0] if values else None


@app.command(
    epilog=_example(
        "interp rescore completions.json",
        "interp rescore base.jsonl tuned.jsonl --label harmful --group category",
    )
)
def rescore(
    first: Annotated[Path, typer.Argument(metavar="FILE", help="Prompts and responses: JSON, JSONL, CSV, …")],
    second: Annotated[
        Path | None, typer.Argument(metavar="FILE2", help="The same prompts answered otherwise.")
    ] = None,
    judge: Annotated[
        str, typer.Option(help="phrases, exact (with --prompts), or TEMPLATE=MODEL such as harmbench=cais/…")
    ] = "phrases",
    label: Annotated[
        str, typer.Option(help="What prompts without a label are: harmful or benign.")
    ] = "harmful",
    prompts: Annotated[
        str | None, typer.Option(help="The prompts asked: labels and truth, and which rows are missing.")
    ] = None,
    prompt_column: Annotated[str | None, typer.Option(help="Column of the prompt; dots lead inside.")] = None,
    response_column: Annotated[str | None, typer.Option(help="Column of the response.")] = None,
    rows: Annotated[str | None, typer.Option(help="Which list of a JSON object holds the rows.")] = None,
    group: Annotated[
        str | None, typer.Option(help="Column of clusters: a verb, a category, a voice.")
    ] = None,
    by: Annotated[str, typer.Option(help="What rows of two files meet by: auto, id or prompt.")] = "auto",
    reference: Annotated[
        str | None, typer.Option(help="Column of another judge's yes or no, to compare with.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write everything to this JSON file too.")] = None,
) -> None:
    """Score somebody else's outputs: outcomes, intervals, and what sets two files apart."""
    from interp.data.prompts import LABELS, read_prompts
    from interp.data.responses import PAIRINGS, read_answers
    from interp.evals import rescore as scoring
    from interp.evals.judges import named_judge

    chosen_label = next((known for known in LABELS if known == label), None)
    pairing = next((known for known in PAIRINGS if known == by), None)
    if chosen_label is None or pairing is None:
        raise UserError("--label is harmful or benign; --by is auto, id or prompt")
    asked = None if prompts is None else read_prompts(prompts, label=chosen_label)
    scorer = named_judge(judge)
    files = []
    for path in (first, *([] if second is None else [second])):
        answers = read_answers(
            path, prompt=prompt_column, response=response_column, rows=rows, group=group, by=pairing,
            label=None if asked else chosen_label,
        )  # fmt: skip
        if asked is not None:
            answers = scoring.asked_from(answers, asked)
        files.append(scoring.rescore(answers, scorer, reference=reference))
        print(scoring.summary(files[-1]))
    if judge == "phrases":
        print("(phrases measure refusal, not harm: an answer beside the point counts as compliance)")
    tests: dict[Any, Any] = {}
    if len(files) == 2:
        tests = scoring.difference(files[0], files[1])
        common = scoring.overlap(files[0].answers, files[1].answers)
        print(scoring.comparison(common, tests, (str(first), str(second))))
    if out is not None:
        from interp.files import save_json

        save_json(out, scoring.to_dict(files, tests))


def _study_config(aligned: str, tuned: tuple[str, ...], given: dict[str, Any]) -> Any:
    from pydantic import ValidationError

    from interp.study import StudyConfig

    try:
        return StudyConfig(aligned=aligned, tuned=tuned, **given)
    except ValidationError as error:
        first = error.errors()[0]
        option = "--" + str(first["loc"][0]).replace("_", "-") if first["loc"] else "study"
        raise UserError(f"{option}: {first['msg']}") from error


@app.command(
    "filter",
    epilog=_example(
        "interp filter train.jsonl --harmful advbench.csv --axis lexical:tfidf --keep distant --fraction 0.5 -o filtered",
        "interp filter spoken.jsonl --harmful harmful.jsonl --axis semantic --axis audio:mfcc -o filtered",
    ),
)
def filter_command(
    benign: Annotated[
        Path,
        typer.Argument(metavar="BENIGN", help="What you would fine-tune on: JSONL, JSON, CSV, TSV, Parquet."),
    ],
    harmful: Annotated[str, typer.Option(help="Harmful requests: a file or datasets name.")],
    axis: Annotated[
        list[str] | None,
        typer.Option(
            help="lexical:tfidf (default), st:MODEL, audio:mfcc, hf:MODEL, self:encoder, self:projector, self:layer=N, gradient; "
            "or lexical, semantic, acoustic, mixed, internal, projector. Given twice: their combined rank."
        ),
    ] = None,
    keep: Annotated[
        str,
        typer.Option(
            help="distant, proximate, random, matched:distant or matched:proximate (random, same lengths)."
        ),
    ] = "distant",
    fraction: Annotated[float, typer.Option(help="Share of the items to keep.")] = 0.5,
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory to write into.")] = Path("filtered"),
    measure: Annotated[
        str | None, typer.Option(help="min, mean or top-N over the harmful items (min; mean for gradient).")
    ] = None,
    centred: Annotated[
        bool, typer.Option("--centred", help="Order by distances after the common mean is subtracted.")
    ] = False,
    model: Annotated[
        str | None, typer.Option(help="The checkpoint to be trained, for self: and gradient.")
    ] = None,
    stop_words: Annotated[
        str | None,
        typer.Option(help="A file of words that do not count, or none. [own list for lexical:tfidf]"),
    ] = None,
    column: Annotated[str | None, typer.Option(help="Column of BENIGN that holds the requests.")] = None,
    harmful_column: Annotated[str | None, typer.Option(help="The same of --harmful.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, …; the accelerator if there is one.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of ties and random subsets.")] = 0,
) -> None:
    """Filter a data set by its distance to harmful requests, before fine-tuning on it."""
    from interp.filtering import FilterConfig, filter_file
    from interp.filtering.page import summary

    config = FilterConfig(
        benign=benign, harmful=harmful, axes=tuple(axis or ["lexical:tfidf"]), keep=keep, fraction=fraction, measure=measure,
        centred=centred, model=model, stop_words=stop_words, column=column, harmful_column=harmful_column, device=device, seed=seed,
    )  # fmt: skip
    found = filter_file(config, out)
    print("\n".join([*summary(found), *found.notes]))
    print(
        f"\nkept:      {out / f'kept{benign.suffix}'}\ndistances: {out / 'distances.csv'}\nreport:    {out / 'report.html'}"
    )


@app.command(epilog=_example("interp doctor --network"))
def doctor(
    network: Annotated[
        bool, typer.Option("--network", help="Also try to reach the Hugging Face hub.")
    ] = False,
) -> None:
    """Check the environment: versions, processor, memory, accelerator, caches, missing extras."""
    from interp.doctor import examine

    raise typer.Exit(0 if examine(network=network) else 1)


@organism.command("build", epilog=_example("interp organism build text --seed 1"))
def build_organism(
    kind: Annotated[str, typer.Argument(help=f"Which organism: {', '.join(ORGANISMS)}.")] = "text",
    seed: Annotated[int, typer.Option(help="Seed of data and training.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Train again even when built.")] = False,
) -> None:
    """Train an organism (minutes) and print where it is; a built one is reused."""
    print(_organism(kind).build(seed=seed, force=force, progress=True))


@organism.command("list", epilog=_example("interp organism list"))
def list_organisms() -> None:
    """List the organisms: their names, and which are built."""
    print("\n".join(_organism(kind).listing() for kind in ORGANISMS))


@organism.command("card", epilog=_example("interp organism card --seed 0"))
def show_card(
    kind: Annotated[str, typer.Argument(help=f"Which organism: {', '.join(ORGANISMS)}.")] = "text",
    seed: Annotated[int, typer.Option(help="Seed of the organism.")] = 0,
) -> None:
    """Show what a built organism was measured to do, with intervals."""
    print(_organism(kind).card(seed=seed))


def _organism(kind: str) -> Any:
    if kind not in ORGANISMS:
        raise UserError(f"no organism {kind!r}; there are: {', '.join(ORGANISMS)}")
    return importlib.import_module(f"interp.organisms.{kind.replace('-', '_')}")


@app.command(
    context_settings=_PASS_ON,
    epilog=_example("interp probe", "interp probe refusal_direction organism:text/aligned"),
)
def probe(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Which; none lists them.")] = None,
) -> None:
    """Ask one question of a model: run a script of probes/ with the arguments that follow its name."""
    _run_script("probes", name, context.args)


@app.command(context_settings=_PASS_ON, epilog=_example("interp run", "interp run demo"))
def run(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Which; none lists them.")] = None,
) -> None:
    """Run an experiment: a script of experiments/ with the arguments that follow its name."""
    _run_script("experiments", name, context.args)


def _run_script(package: str, name: str | None, arguments: list[str]) -> None:
    if name is None:
        found = scripts.available(package)
        width = max(map(len, found), default=0)
        print(
            "\n".join(f"{script:<{width}}  {line}" for script, line in found.items()) or f"no {package} yet"
        )
        return
    module = importlib.import_module(f"{package}.{scripts.find(package, name)}")
    raise typer.Exit(module.main(arguments) or 0)


@app.command(epilog=_example("interp report results/study/latest --out report"))
def report(
    directory: Annotated[Path, typer.Argument(help="A finished result, or a link to one.")],
    out: Annotated[Path, typer.Option(help="Where to write; the result itself never changes.")] = Path(
        "report"
    ),
) -> None:
    """Draw the report and figures of a stored study again, without a model."""
    from interp.files import replacing_files
    from interp.store import load_run

    source = load_run(directory).path
    if out.resolve() == source:
        raise ResultError(f"{out}: is the finished result itself, which never changes; give another --out")
    from interp.report.html import render_report
    from interp.results import StudyResult

    result = StudyResult.from_store(source)
    with replacing_files(out) as aside:
        render_report(result, aside)
    print(f"report:  {out / 'report.html'}\nfigures: {out / 'figures'}")
