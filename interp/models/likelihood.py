"""How probable does a model find given answers? Log-probabilities of response tokens, teacher-forced."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.data.prompts import Prompt
from interp.models.batches import run_batches
from interp.models.hooks import Edits, PromptEdits, editing, edits_for
from interp.models.model import Model
from interp.progress import progress as progress_bar


@torch.no_grad()
def response_log_probs(
    model: Model,
    prompts: Sequence[Prompt],
    *,
    edits: Edits | PromptEdits | None = None,
    max_tokens: int = 16,
    batch_size: int = 16,
    progress: bool = True,
) -> list[tuple[Float[Tensor, "token vocab"], Int[Tensor, " token"]]]:
    """For each prompt, the next-token log-probabilities at its response's first `max_tokens` tokens, and those tokens.

    fp32 on the CPU, in the order of the prompts. `edits` act as while generating: their `prompt` ends where the response begins.
    Raises UserError for a prompt without a response.
    """
    context = [model.token_ids(prompt) for prompt in prompts]
    response = [model.response_ids(prompt)[:max_tokens] for prompt in prompts]
    rows = [c + r for c, r in zip(context, response, strict=True)]

    def step(batch: list[int]) -> list[Tensor]:
        padded = model.pad([rows[i] for i in batch], [prompts[i].id for i in batch])
        longest = max(len(response[i]) for i in batch)
        chosen = edits_for(model, edits, [prompts[i] for i in batch])
        width = padded.input_ids.shape[1] - longest
        # left padding puts every response at the end, so the head is needed on the last positions only
        with editing(model, chosen, prompt_width=width) if chosen else nullcontext():
            logits = model.module(**padded.inputs(), use_cache=False, logits_to_keep=longest + 1).logits
        logits = logits[:, -longest - 1 :]  # some models keep all
        log_probs = logits[:, :-1].float().log_softmax(-1).cpu()
        return [log_probs[k, longest - len(response[i]) :] for k, i in enumerate(batch)]

    # Under edits a batch has responses of one length: rows end together, so that their prompts do too.
    lengths = [len(part) if edits else 0 for part in response]
    groups = [[i for i, own in enumerate(lengths) if own == length] for length in dict.fromkeys(lengths)]
    batches = [
        [group[k] for k in part]
        for group in groups
        for part in model.batches([rows[i] for i in group], batch_size, 4096)
    ]
    found: dict[int, Tensor] = {}
    with progress_bar("likelihoods", total=len(rows), enabled=progress) as advance:
        for batch, values in run_batches(batches, step):
            found.update(zip(batch, values, strict=True))
            advance(len(batch))
    return [(found[i], torch.tensor(response[i])) for i in range(len(rows))]


def with_responses(prompts: Sequence[Prompt], answers: Sequence[str]) -> list[Prompt]:
    """The prompts with these answers as their responses."""
    return [replace(prompt, response=answer) for prompt, answer in zip(prompts, answers, strict=True)]
