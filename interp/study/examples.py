"""Which answers are worth reading beside each other? Those whose outcome changed first, harmful before harmless."""

from __future__ import annotations

from collections.abc import Mapping

from interp.data.prompts import PromptSet
from interp.data.thumbnails import Gallery
from interp.evals.verdicts import Outcome
from interp.results import Example
from interp.store import Run
from interp.study.settings import KINDS


def examples(
    run: Run,
    asked: Mapping[str, PromptSet],
    steps: tuple[str, str],
    most: int,
    gallery: Gallery,
    modality: str = "",
) -> list[Example]:
    """At most so many test prompts with the answers of the aligned and of a tuned checkpoint.

    Args:
        asked: `harmful_test` and `harmless_test`. steps: that hold the aligned and the tuned checkpoint's answers to them.
        gallery: makes the pictures and players, within its bound. modality: named beside the prompt.
    """
    sides = [run.load_json(step) for step in steps]
    texts = [{c["prompt_id"]: c["text"] for c in side["completions"]} for side in sides]
    found = []
    for kind in KINDS:
        outcomes = [
            {v["prompt_id"]: Outcome(v["outcome"]) for v in side["results"][kind]["verdicts"]}
            for side in sides
        ]
        found += [
            (prompt, outcomes[0][prompt.id], outcomes[1][prompt.id]) for prompt in asked[f"{kind}_test"]
        ]
    found.sort(key=lambda row: row[1] is row[2])
    return [
        Example(
            prompt.text,
            texts[0][prompt.id],
            texts[1][prompt.id],
            before,
            after,
            modality=modality,
            media=gallery.of(prompt),
        )
        for prompt, before, after in found[:most]
    ]
