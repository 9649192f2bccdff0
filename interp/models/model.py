"""A Hugging Face causal language model with its tokenizer: prompts in, left-padded batches and logits out.

Positions come from the attention mask and the chat template: `n_eoi` counts the template's tokens that follow every
instruction (end of turn, assistant header), which is where refusal is decided (Arditi et al. 2024).
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import jinja2
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from interp.data.prompts import Prompt
from interp.errors import CheckpointError, UserError
from interp.models.batches import by_length
from interp.models.media_cache import MediaCache
from interp.models.media_inputs import media_placeholders, media_types, process_media
from interp.models.tokens import Tokens, stack_media
from interp.models.towers import Tower, find_tower

if TYPE_CHECKING:
    from interp.models.checkpoint import Checkpoint

PLAIN = "plain"


@dataclass(frozen=True, eq=False)
class Batch:
    """Left-padded prompts: token ids, mask and positions that do not count padding.

    `media` are the arguments of the forward beside these: pixels, spectrograms, and what marks their tokens. `with_positions` is
    False for models that work out positions by themselves.
    """

    input_ids: Int[Tensor, "batch pos"]
    attention_mask: Int[Tensor, "batch pos"]
    prompt_ids: tuple[str, ...]
    media: Mapping[str, Tensor] = field(default_factory=dict)
    with_positions: bool = True

    @property
    def position_ids(self) -> Int[Tensor, "batch pos"]:
        """Position of each token in its own prompt; padding gets 0."""
        return (self.attention_mask.cumsum(-1) - 1).clamp(min=0)

    @property
    def lengths(self) -> Int[Tensor, " batch"]:
        """Tokens of each prompt without padding."""
        return self.attention_mask.sum(-1)

    def inputs(self) -> dict[str, Tensor]:
        """Keyword arguments of the model's forward."""
        positions = {"position_ids": self.position_ids} if self.with_positions else {}
        return {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            **positions,
            **self.media,
        }

    def repeat(self, times: int) -> Batch:
        """The whole batch `times` over, for running several edits side by side."""
        return Batch(
            self.input_ids.repeat(times, 1),
            self.attention_mask.repeat(times, 1),
            self.prompt_ids * times,
            {name: torch.cat([value] * times) for name, value in self.media.items()},
            self.with_positions,
        )


@dataclass(eq=False)
class Model:
    """A model in eval mode; `module` is the plain Hugging Face module, adapters injected."""

    module: PreTrainedModel
    tokenizer: Any
    tower: Tower
    name: str
    chat_template: str | None
    checkpoint: Checkpoint | None = None
    peft: Any = None
    n_eoi: int = 1
    end_of_turn: str = ""
    processor: Any = None
    media_cache: MediaCache = field(default_factory=MediaCache, repr=False)

    @classmethod
    def from_module(
        cls,
        module: PreTrainedModel,
        tokenizer: Any,
        *,
        name: str = "model",
        checkpoint: Checkpoint | None = None,
        peft: Any = None,
        chat_template: str | None = None,
    ) -> Model:
        """Wrap a module in memory; `chat_template` is `plain`, a Jinja file, or None for the tokenizer's own.

        `tokenizer` is the processor in a model that sees or hears.
        """
        processor = tokenizer if hasattr(tokenizer, "tokenizer") else None
        template = _template(tokenizer, chat_template, name)
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
        model = cls(module.eval(), tokenizer, find_tower(module), name, template, checkpoint, peft)
        model.processor = processor
        model.n_eoi, model.end_of_turn = model._measure_template()
        return model

    def __repr__(self) -> str:
        return f"Model({self.name}: {type(self.module).__name__}, {self.n_layers} layers × {self.d_model}, {self.dtype})"

    @property
    def n_layers(self) -> int:
        """Number of decoder blocks."""
        return self.tower.n_layers

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.tower.d_model

    @property
    def device(self) -> torch.device:
        """Device of the embeddings, where inputs go."""
        return next(self.tower.embed.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the parameters."""
        return self.module.dtype

    @property
    def context(self) -> int | None:
        """Longest sequence the model was made for, in tokens."""
        return getattr(self.module.config.get_text_config(decoder=True), "max_position_embeddings", None)

    @property
    def eos_ids(self) -> list[int]:
        """Tokens that end an answer: the generation config's, the tokenizer's and the template's end of turn."""
        found = getattr(self.module.generation_config, "eos_token_id", None)
        ids = [found] if isinstance(found, int) else list(found or [])
        ids += [self.tokenizer.eos_token_id] if self.tokenizer.eos_token_id is not None else []
        turn = (
            self.tokenizer(self.end_of_turn, add_special_tokens=False)["input_ids"]
            if self.end_of_turn
            else []
        )
        return list(dict.fromkeys([*ids, *turn[:1]]))

    @property
    def pad_id(self) -> int:
        """Token used for padding; masked everywhere, so any will do."""
        return next((i for i in (self.tokenizer.pad_token_id, *self.eos_ids) if i is not None), 0)

    def render(self, prompt: Prompt) -> str:
        """The prompt as text, through the chat template up to where the answer begins; media as their placeholders."""
        if self.chat_template == PLAIN:
            asked = "".join(media_placeholders(self.processor, prompt)) + prompt.text
            return f"{prompt.system}\n{asked}" if prompt.system else asked
        turns = [self._turn("system", prompt.system)] if prompt.system else []
        user = self._turn("user", prompt.text, media_types(prompt))
        return self._apply_template([*turns, user], add_generation_prompt=True)

    def token_ids(self, prompt: Prompt) -> Tokens:
        """Token ids of the rendered prompt, without its response, and its media as the model takes them.

        Raises UserError when it has none, does not fit the context, or holds what this model cannot see or hear.
        """
        plain = self.chat_template == PLAIN
        text = self.render(prompt)
        if prompt.images or prompt.audio is not None:
            tokens = self.media_cache.get(
                prompt, text, lambda: process_media(self, prompt, text, add_special_tokens=plain)
            )
        else:
            tokens = Tokens(tuple(self.tokenizer(text, add_special_tokens=plain)["input_ids"]))
        self._check_length(prompt, len(tokens))
        return tokens

    def response_ids(self, prompt: Prompt) -> list[int]:
        """Token ids of the prompt's response and the end of its turn; raises UserError when it has no response."""
        if not prompt.response:
            raise UserError(f"prompt {prompt.id!r} has no response, which training and likelihoods need")
        end = self.end_of_turn or (self.tokenizer.eos_token or "")
        return list(self.tokenizer(prompt.response + end, add_special_tokens=False)["input_ids"])

    def encode(self, prompts: Sequence[Prompt]) -> Batch:
        """Prompts as one left-padded batch on the model's device, the generation prompt included.

        Raises UserError for media of different sizes where an encoder attends to padding: one batch would change what is seen.
        """
        rows = [self.token_ids(prompt) for prompt in prompts]
        sizes = {tuple((n, *v.shape[1:]) for n, v in row.media.items()) for row in rows if row.media}
        if len(sizes) > 1 and not self.tower.paths.mixed_sizes:
            raise UserError(
                f"the encoder of {self.name} attends to padding, so media of different sizes cannot share a batch; give images or sounds of "
                "one size"
            )
        return self.pad(rows, [prompt.id for prompt in prompts])

    def pad(self, rows: Sequence[Tokens | list[int]], prompt_ids: Sequence[str]) -> Batch:
        """Rows of token ids, with their media, as one left-padded batch on the model's device."""
        width = max(map(len, rows))
        ids = torch.tensor(
            [[self.pad_id] * (width - len(row)) + list(row) for row in rows], device=self.device
        )
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=self.device)
        media = self.media_inputs(
            [row if isinstance(row, Tokens) else Tokens(tuple(row)) for row in rows], width
        )
        return Batch(ids, mask, tuple(prompt_ids), media, not self.tower.paths.own_positions)

    def media_inputs(self, rows: Sequence[Tokens], width: int) -> dict[str, Tensor]:
        """What the forward takes beside the ids of rows left-padded to `width`: their media, and what tells tokens apart."""
        found = {
            name: value.to(self.device, self.dtype if value.is_floating_point() else None)
            for name, value in stack_media([row.media for row in rows]).items()
        }
        if self.tower.paths.type_ids:
            kinds = [[0] * (width - len(row)) + self.type_ids(row) for row in rows]
            found[self.tower.paths.type_ids] = torch.tensor(kinds, device=self.device)
        return found

    def type_ids(self, row: Tokens) -> list[int]:
        """What `TowerPaths.type_ids` holds for a row: the kinds of its tokens, or which are the response."""
        if self.tower.paths.types_mark == "response":
            return [0] * (len(row) - row.response) + [1] * row.response
        return self.modalities(torch.tensor(row.ids)).tolist()

    def batches(self, rows: Sequence[Tokens], max_rows: int, max_tokens: int) -> list[list[int]]:
        """`by_length` of rows; where media of different sizes may not share a batch, of each size by itself."""
        sizes = [
            None
            if self.tower.paths.mixed_sizes
            else tuple((name, *value.shape[1:]) for name, value in row.media.items())
            for row in rows
        ]
        found = []
        for size in dict.fromkeys(sizes):
            group = [i for i, own in enumerate(sizes) if own == size]
            parts = by_length([len(rows[i]) for i in group], max_rows, max_tokens)
            found += [[group[i] for i in part] for part in parts]
        return found

    def modalities(self, ids: Int[Tensor, "*rows"]) -> Int[Tensor, "*rows"]:
        """0 at text and padding, 1 at tokens that stand for an image, 3 at those of a sound: Hugging Face's numbers."""
        kinds = torch.zeros_like(ids)
        for encoder in self.tower.encoders.values():
            kinds[ids == encoder.token_id] = {"vision": 1, "audio": 3}[encoder.modality]
        return kinds

    @torch.no_grad()
    def last_logits(self, batch: Batch) -> Float[Tensor, "batch vocab"]:
        """Logits at each prompt's last token; the head is not evaluated anywhere else."""
        return self.module(**batch.inputs(), use_cache=False, logits_to_keep=1).logits[:, -1]

    @property
    def eoi_tokens(self) -> list[str]:
        """The template's tokens after every instruction, as text."""
        ids = self.token_ids(Prompt(text="x", id="x"))[-self.n_eoi :]
        return [self.tokenizer.decode([i]) for i in ids]

    def trace(self, *args: Any, **kwargs: Any) -> Any:
        """`nnsight.NNsight(module).trace(...)` on the same module, for exploration."""
        from nnsight import NNsight

        return NNsight(self.module).trace(*args, **kwargs)

    def bridge(self) -> Any:
        """A TransformerLens `TransformerBridge` on a merged *copy*: wrapping mutates, and live adapters are not shown."""
        from transformer_lens.model_bridge.sources.transformers import boot, source

        if self.peft is not None:
            merged = copy.deepcopy(self.peft).merge_and_unload()
        else:
            merged = copy.deepcopy(self.module)
        merged.config.architectures = merged.config.architectures or [type(merged).__name__]
        name = self.checkpoint.base if self.checkpoint else self.name
        # TransformerLens loads the tokenizer anew from where it came from: give it a place that has it. A processor that it cannot
        # load makes it *install* torchvision, and with that another torch: it gets ours instead.
        with (
            tempfile.TemporaryDirectory() as directory,
            mock.patch.object(source, "load_modality_processor", lambda bridge, *_: None),
        ):
            self.tokenizer.save_pretrained(directory)
            tokenizer = copy.deepcopy(self.tokenizer)
            tokenizer.init_kwargs["name_or_path"] = directory
            bridge = boot(
                name, hf_model=merged, tokenizer=tokenizer, dtype=self.dtype, device=str(self.device)
            )
        bridge.processor = self.processor
        return bridge

    def _turn(self, role: str, text: str, media: Sequence[str] = ()) -> dict[str, Any]:
        """A turn as the template wants it: text, or a list of parts where there is a processor."""
        if self.processor is None:
            return {"role": role, "content": text}
        said = [{"type": "text", "text": text}] if text else []
        return {"role": role, "content": [*({"type": kind} for kind in media), *said]}

    def _apply_template(self, turns: list[dict[str, Any]], *, add_generation_prompt: bool) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                turns,
                chat_template=self.chat_template,
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
            )
        except jinja2.exceptions.TemplateError as error:
            raise UserError(f"the chat template of {self.name} refuses these turns: {error}") from error

    def _measure_template(self) -> tuple[int, str]:
        """Number of tokens after the instruction, and the text that ends an answer."""
        if self.chat_template == PLAIN:
            return 1, self.tokenizer.eos_token or ""
        words = self._words()
        rows = [self.token_ids(Prompt(text=word, id=word)) for word in words]
        common = 0
        while common < min(map(len, rows)) and len({row[-1 - common] for row in rows}) == 1:
            common += 1
        if common == 0:
            raise CheckpointError(
                f"{self.name}: its chat template puts nothing after the instruction; pass --chat-template"
            )
        mark = "\N{SNOWMAN}answer\N{SNOWMAN}"
        turns = [self._turn("user", "x"), self._turn("assistant", mark)]
        _, found, end = self._apply_template(turns, add_generation_prompt=False).rpartition(mark)
        return common, end.strip() if found else ""

    def _words(self) -> list[str]:
        """Words of the tokenizer's own vocabulary: foreign ones would all be the same unknown token."""
        size, special = len(self.tokenizer), set(self.tokenizer.all_special_ids)
        words = [
            self.tokenizer.decode([i]).strip() for i in range(0, size, max(1, size // 64)) if i not in special
        ]
        return [word for word in words if word]

    @property
    def two_words(self) -> tuple[str, str]:
        """Two words whose first tokens differ."""
        words = self._words()
        first = {word: self.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in words}
        return words[-1], next(word for word in reversed(words) if first[word] != first[words[-1]])

    def _check_length(self, prompt: Prompt, n_tokens: int) -> None:
        if n_tokens == 0:
            raise UserError(f"prompt {prompt.id!r} has no tokens")
        if self.context is not None and n_tokens > self.context:
            raise UserError(
                f"prompt {prompt.id!r} has {n_tokens} tokens, the context of {self.name} is {self.context}; shorten or drop it"
            )


def _template(tokenizer: Any, chat_template: str | None, name: str) -> str:
    if chat_template == PLAIN:
        return PLAIN
    if chat_template is not None:
        try:
            return Path(chat_template).read_text(encoding="utf-8")
        except OSError as error:
            raise CheckpointError(f"chat template file {chat_template!r} cannot be read: {error}") from error
    own = tokenizer.chat_template or getattr(getattr(tokenizer, "tokenizer", None), "chat_template", None)
    if not own:
        raise CheckpointError(
            f"{name} has no chat template; pass --chat-template FILE.jinja, or plain for a base model"
        )
    return own["default"] if isinstance(own, dict) else own
