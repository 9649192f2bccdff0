"""Which tokens of a prompt are meant? A rule names some of them, `mean-` before it their mean.

`last` and an index are one token, `eoi` those that the chat template puts after the instruction, `all` every token; `image` and `audio`
the tokens that stand for what is seen or heard, `text` the others, `instruction` the user's own words: text that is not the template's.
`mean` is `mean-all`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool

from interp.data.prompts import Prompt
from interp.errors import SiteError
from interp.models.model import Model

Rule = str | int  # checked when used, so that a typo gets our one line
KINDS = {"image": 1, "audio": 3, "text": 0}  # as `Model.modalities` numbers them
NAMES = ("last", "eoi", "all", *KINDS, "instruction")


def parse_rule(rule: Rule) -> tuple[Rule, bool]:
    """Which tokens, and whether their mean is wanted; raises SiteError for an unknown rule."""
    if isinstance(rule, int):
        return rule, False
    name = "all" if rule == "mean" else rule.removeprefix("mean-")
    if name not in NAMES:
        raise SiteError(f"unknown position rule {rule!r}; use {', '.join(NAMES)}, mean, mean-… or an index")
    return name, name != rule


def wanted_tokens(
    rule: Rule, prompt: Prompt, tokens: Sequence[int], model: Model
) -> Bool[torch.Tensor, " token"]:
    """Which of the prompt's own tokens the rule means; raises SiteError naming a prompt in which it means none."""
    name, _ = parse_rule(rule)
    wanted = torch.zeros(len(tokens), dtype=torch.bool)
    match name:
        case int():
            if not -len(tokens) <= name < len(tokens):
                raise SiteError(
                    f"position {name} does not exist in a prompt of {len(tokens)} tokens ({prompt.id!r})"
                )
            wanted[name] = True
        case "last":
            wanted[-1] = True
        case "eoi":
            wanted[-model.n_eoi :] = True
        case "all":
            wanted[:] = True
        case _:
            kinds = model.modalities(torch.tensor([list(tokens)]))[0]
            wanted = kinds == KINDS.get(str(name), 0)
            if name == "instruction":
                wanted[: _start(prompt, tokens, model)] = False
                wanted[len(tokens) - model.n_eoi :] = False
    if not wanted.any():
        raise SiteError(f"prompt {prompt.id!r} has no {name} tokens in {model.name}")
    return wanted


def _start(prompt: Prompt, tokens: Sequence[int], model: Model) -> int:
    """How many tokens come before the user's words: as many as stay when these are others."""

    def common(word: str) -> int:
        other = model.token_ids(replace(prompt, text=word))
        pairs = zip(tokens, other, strict=False)
        return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(tokens), len(other)))

    # one of two different words differs from the prompt's first
    return min(map(common, model.two_words))
