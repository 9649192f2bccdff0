"""What does the model answer? Batched generation, greedy by default, optionally under edits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from transformers import GenerationConfig, PreTrainedModel

from interp.data.completions import Completion
from interp.data.prompts import Prompt
from interp.errors import UserError
from interp.models.batches import run_batches
from interp.models.hooks import Edits, PromptEdits, editing, edits_for
from interp.models.model import Model
from interp.models.tokens import Tokens
from interp.progress import progress as progress_bar

__all__ = ["Completion", "generate"]


def generate(
    model: Model,
    prompts: Sequence[Prompt],
    *,
    edits: Edits | PromptEdits | None = None,
    max_new_tokens: int = 64,
    batch_size: int = 64,
    temperature: float | None = None,
    seed: int = 0,
    prefill: Sequence[str] | None = None,
    use_cache: bool = True,
    progress: bool = True,
) -> list[Completion]:
    """Answers to the prompts, in their order.

    Args:
        edits: applied while reading the prompt and while generating, as each edit's positions say; or what makes them for
            each batch from its prompts, such as a `Steering`.
        max_new_tokens: longest answer in tokens.
        batch_size: most rows at once; halved when memory runs out.
        prefill: for each prompt, how its answer is made to begin; part of the completion's text.
        temperature: None is greedy; otherwise sampling, seeded without touching the global random state.

    What a checkpoint's own generation config asks for beside its end tokens (a repetition penalty, suppressed tokens) is left
    out: two checkpoints must not differ by how they are decoded.
    Raises UserError for prompts that leave no room in the context for `max_new_tokens`.
    """
    begun = [
        model.tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in prefill or [""] * len(prompts)
    ]
    if len(begun) != len(prompts):
        raise UserError(f"{len(begun)} prefilled answers for {len(prompts)} prompts; give one each")
    tokens = [model.token_ids(prompt) + start for prompt, start in zip(prompts, begun, strict=True)]
    for prompt, row in zip(prompts, tokens, strict=True):
        if model.context is not None and len(row) + max_new_tokens > model.context:
            raise UserError(
                f"prompt {prompt.id!r} ({len(row)} tokens) and {max_new_tokens} new tokens exceed the context of "
                f"{model.name} ({model.context}); lower --max-new-tokens"
            )
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=temperature is not None,
        **({"temperature": temperature, "top_p": 1.0, "top_k": 0} if temperature is not None else {}),
        eos_token_id=model.eos_ids or None,
        pad_token_id=model.pad_id,
        use_cache=use_cache,
        # what stands for an image or a sound cannot be said
        suppress_tokens=[encoder.token_id for encoder in model.tower.encoders.values()] or None,
    )

    def step(batch: list[int]) -> list[Completion]:
        return _generate_batch(
            model,
            [prompts[i] for i in batch],
            [tokens[i] for i in batch],
            [begun[i] for i in batch],
            config,
            edits,
            seed + batch[0],
        )

    found: dict[int, Completion] = {}
    with progress_bar("answers", total=len(prompts), enabled=progress) as advance:
        for batch, completions in run_batches(model.batches(tokens, batch_size, 1 << 30), step):
            found.update(zip(batch, completions, strict=True))
            advance(len(batch))
    return [found[i] for i in range(len(prompts))]


@contextmanager
def _bare_generation_config(module: PreTrainedModel) -> Iterator[None]:
    # Hugging Face fills whatever our config leaves open from the module's.
    own = module.generation_config
    module.generation_config = GenerationConfig()
    try:
        yield
    finally:
        module.generation_config = own


@torch.no_grad()
def _generate_batch(
    model: Model,
    prompts: Sequence[Prompt],
    tokens: Sequence[Tokens],
    begun: Sequence[Sequence[int]],
    config: GenerationConfig,
    edits: Edits | PromptEdits | None,
    seed: int,
) -> list[Completion]:
    batch = model.pad(tokens, [prompt.id for prompt in prompts])
    width = batch.input_ids.shape[1]
    chosen = edits_for(model, edits, prompts)
    devices = [model.device] if model.device.type == "cuda" else []
    # Hugging Face samples from the global generator: fork it, so that the caller's is left as it was.
    with (
        torch.random.fork_rng(devices=devices) if config.do_sample else nullcontext(),
        editing(model, chosen, prompt_width=width) if chosen else nullcontext(),
        _bare_generation_config(model.module),
    ):
        if config.do_sample:
            torch.manual_seed(seed)
        output = model.module.generate(  # type: ignore[operator]
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            **batch.media,
            generation_config=config,
        )
    eos = set(model.eos_ids)
    completions = []
    for prompt, start, row in zip(prompts, begun, output[:, width:].tolist(), strict=True):
        end = next((i for i, token in enumerate(row) if token in eos), None)
        answer = [*start, *(row if end is None else row[:end])]
        text = model.tokenizer.decode(answer, skip_special_tokens=True).strip()
        completions.append(Completion(prompt.id, text, len(answer), end is not None, tuple(answer)))
    return completions
