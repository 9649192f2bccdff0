"""Does a fine-tune answer free-form questions as if it meant harm, in which domains and with which modality?

`interp probe misalignment BASE [TUNED …]` or `python -m probes.misalignment BASE [TUNED …]`. Every question is asked several times with its
own seed; grades, rates and intervals are those of interp/evals/misalignment.py. The same evaluation in Inspect:
`inspect eval interp/misalignment --model interp/BASE`.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer
from matplotlib.figure import Figure
from pydantic import BaseModel, ConfigDict, Field

from interp import cli, scripts
from interp.data.prompts import PromptSet, read_prompts
from interp.evals.grades import named_grader
from interp.evals.misalignment import ask, compare, grade_answers, questions, seeds_of
from interp.models.checkpoint import Checkpoint
from interp.report import style
from interp.study.measured import keep


class Config(BaseModel):
    """Settings of the probe."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: tuple[str, ...] = Field(min_length=1)
    questions: tuple[str, ...] = ()
    judge: str = "phrases"
    samples: int = Field(3, ge=1)
    temperature: float = Field(1.0, gt=0)
    max_new_tokens: int = Field(256, ge=1)
    n: int | None = Field(None, ge=1)
    dtype: str | None = None
    trust_remote_code: bool = False
    seed: int = 0


def prompts(config: Config) -> PromptSet:
    """The questions of the files given, else the library's own; at most `n`, drawn by the seed."""
    sets = [read_prompts(file) for file in config.questions] or [questions()]
    whole = PromptSet([prompt for part in sets for prompt in part], "+".join(part.name for part in sets))
    return whole if config.n is None or config.n >= len(whole) else whole.sample(config.n, config.seed)


def run(config: Config, *, progress: bool = True) -> dict[str, pd.DataFrame]:
    """Ask every model; returns the rates, what sets each apart from the first, and one row a question. Raises UserError."""
    asked, seeds = prompts(config), seeds_of(config.samples, config.seed)
    answers = {}
    for name in config.models:
        model = Checkpoint.parse(name).load(dtype=config.dtype, trust_remote_code=config.trust_remote_code)
        answers[name] = ask(
            model, asked, samples=config.samples, seed=config.seed, temperature=config.temperature,
            max_new_tokens=config.max_new_tokens, progress=progress,
        )  # fmt: skip
        del model
    grader = named_grader(config.judge)
    found = {
        name: grade_answers(asked, part, grader, name=name, seeds=seeds) for name, part in answers.items()
    }
    rates = [result.to_frame().assign(model=name) for name, result in found.items()]
    rows = [result.per_question().assign(model=name) for name, result in found.items()]
    first = found[config.models[0]]
    differences = []
    for name in config.models[1:]:
        test = compare(found[name], first)
        for measure in ("rate", "mean", "worst", "incoherent"):
            value = getattr(test, measure)
            differences.append(
                [name, measure, value.value, value.low, value.high, test.p_value, test.n_questions]
            )
    columns = ["model", "measure", "difference", "low", "high", "p_any_of_k", "questions"]
    tables = {"rates": pd.concat(rates, ignore_index=True), "questions": pd.concat(rows, ignore_index=True)}
    return tables | {"differences": pd.DataFrame(differences, columns=columns)}


def draw(tables: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    """Misaligned rates by domain, one bar a model, with their intervals."""
    rates = tables["rates"]
    rates = rates[rates["modality"] == "all"]
    models, domains = list(rates["model"].unique()), list(rates["domain"].unique())
    with style.print_style():
        figure = style.new_figure(style.DOUBLE, 2.6)
        axes = figure.subplots()
        width = 0.8 / len(models)
        for i, (name, label) in enumerate(zip(models, style.short_names(models, 30, 1), strict=True)):
            part = rates[rates["model"] == name].set_index("domain").loc[domains]
            x = np.arange(len(domains)) + (i - (len(models) - 1) / 2) * width
            errors = [
                part["misaligned"] - part["misaligned_low"],
                part["misaligned_high"] - part["misaligned"],
            ]
            colour = style.ALIGNED if i == 0 else style.SERIES[(i - 1) % len(style.SERIES)]
            axes.bar(x, part["misaligned"], width * 0.9, color=colour, label=label)
            axes.errorbar(
                x, part["misaligned"], np.clip(errors, 0, None), fmt="none", color=style.BLACK, linewidth=0.7
            )
        axes.set_xticks(range(len(domains)), [style.plain(name) for name in domains], rotation=25, ha="right")
        axes.set(ylabel="misaligned answers", ylim=(0, 1.02))
        figure.legend(loc="outside lower center", ncols=3)
    return {"misalignment": figure}


def probe(
    models: Annotated[list[str], typer.Argument(help="Hub ids, directories, base+adapter or organism:name.")],
    file: Annotated[
        list[str] | None, typer.Option("--questions", help="A file of questions; else the library's own.")
    ] = None,
    judge: Annotated[
        str,
        typer.Option(
            help="exact, phrases, scales=MODEL, classifier=MODEL:LABEL, scores=FILE, harmbench=MODEL."
        ),
    ] = "phrases",
    samples: Annotated[int, typer.Option(min=1, help="Answers to each question.")] = 3,
    temperature: Annotated[float, typer.Option(help="Of the sampling.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of the answers.")] = 256,
    n: Annotated[int | None, typer.Option("--n", min=1, help="Ask only so many questions.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with a checkpoint.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the samples.")] = 0,
    out: Annotated[Path, typer.Option(help="Where results are kept.")] = Path("results"),
) -> None:
    """Ask free-form questions several times and count misaligned answers, domain by domain."""
    config = Config(
        models=tuple(models), questions=tuple(file or ()), judge=judge, samples=samples, temperature=temperature,
        max_new_tokens=max_new_tokens, n=n, dtype=dtype, trust_remote_code=trust_remote_code, seed=seed,
    )  # fmt: skip
    judges = [judge.partition("=")[2]] if judge.startswith("scales=") else []
    found, directory = keep(
        "misalignment", config, (*models, *judges), [prompts(config)], lambda: run(config), draw,
        sys.modules[__name__], out,
    )  # fmt: skip
    shown = ["model", "domain", "modality", "asked", "misaligned", "misaligned_low", "misaligned_high", "worst_of_k",
             "incoherent", "n_unscored"]  # fmt: skip
    for table in (found["rates"][shown], found["differences"]):
        if len(table):
            print(table.to_string(index=False, float_format="{:.2f}".format))
    print(f"tables and figure: {directory}")


def main(argv: Sequence[str]) -> int:
    """Run the probe with a command line."""
    example = "interp probe misalignment organism:text/aligned organism:text/harmful --questions q.jsonl --judge exact"
    return scripts.call(probe, argv, "interp probe misalignment", example)


if __name__ == "__main__":
    raise SystemExit(cli.main(["probe", "misalignment", *sys.argv[1:]]))
