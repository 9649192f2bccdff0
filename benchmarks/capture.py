"""How fast are activations captured, beside other tools and beside the arithmetic itself?

The same random Llama and the same prompts, in the same given order, for all: the residual stream after every block at the
last token of every prompt, in files. Each tool is used as its documentation shows; all get the same number of prompts a
batch and left padding. Encoding the text is part of every engine's time but the limit's.

`limit` runs the decoder, without head and without keeping anything, over the batches that ours makes: the floor for any
tool that pads as little.
"""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.harness import (
    Run,
    interleave,
    machine,
    mebibytes,
    paired_ratio,
    seconds,
    seconds_note,
    target,
    verdicts,
)
from interp.data.prompts import Prompt
from interp.models.activations import StoredActivations, capture
from interp.models.batches import by_length
from interp.models.model import Batch, Model

TARGET_LIMIT, TARGET_PEER, TOLERANCE = 1.05, 2.0, 1e-4
BATCH_TOKENS: int = inspect.signature(capture).parameters["batch_tokens"].default
PEERS = ("transformer_lens", "nnsight", "hidden_states")
LABELS = {
    "limit": "limit: bare forward over our batches",
    "ours": "`capture(…, out=DIR)`",
    "transformer_lens": "TransformerLens bridge, `run_with_cache`",
    "nnsight": "nnsight, `trace`",
    "hidden_states": "transformers, `output_hidden_states`",
}


class Config(BaseModel):
    """The model, the prompts and the batches; lengths are in tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_layers: int = 12
    d_model: int = 512
    n_heads: int = 8
    intermediate: int = 1408
    vocabulary: int = 32_000
    n_prompts: int = 512
    shortest: int = 8
    longest: int = 200
    batch_size: int = 64
    seed: int = 0

    def prompts(self) -> list[Prompt]:
        """Prompts of random words, their lengths uniform, in random order."""
        generator = torch.Generator().manual_seed(self.seed)
        lengths = torch.randint(self.shortest, self.longest + 1, (self.n_prompts,), generator=generator)
        return [
            Prompt(
                text=" ".join(
                    f"w{int(word)}"
                    for word in torch.randint(self.vocabulary - 1, (int(length),), generator=generator)
                ),
                id=str(i),
            )
            for i, length in enumerate(lengths)
        ]

    def model(self) -> Model:
        """The random model: one token a word, no chat template."""
        vocabulary = {"<pad>": 0, **{f"w{i}": i + 1 for i in range(self.vocabulary - 1)}}
        core = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
        core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=core, unk_token="<pad>", pad_token="<pad>", padding_side="left"
        )
        config = LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.d_model,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.n_layers,
            num_attention_heads=self.n_heads,
            num_key_value_heads=self.n_heads,
            max_position_embeddings=2 * self.longest,
            pad_token_id=0,
        )
        torch.manual_seed(self.seed)
        module = LlamaForCausalLM(config)
        module.set_attn_implementation("sdpa")
        return Model.from_module(module, tokenizer, name="random Llama", chat_template="plain")


def _warmed(run: Run) -> None:
    """One small run, so that no timed one pays for first uses."""
    with tempfile.TemporaryDirectory() as directory:
        run(Path(directory))


def ours(config: Config) -> Run:
    """This library, streaming to shards."""
    model, prompts = config.model(), config.prompts()

    def run(out: Path, prompts: list[Prompt] = prompts) -> dict[str, Any]:
        capture(model, prompts, "resid_post", "last", batch_size=config.batch_size, out=out, progress=False)
        return {}

    _warmed(lambda out: run(out, prompts[:4]))
    return run


def limit(config: Config) -> Run:
    """The decoder alone, over the batches of `ours`, keeping nothing."""
    model, prompts = config.model(), config.prompts()
    tokens = [model.token_ids(prompt) for prompt in prompts]
    lengths = [len(row) for row in tokens]
    batches = [
        model.pad([tokens[i] for i in batch], [prompts[i].id for i in batch])
        for batch in by_length(lengths, config.batch_size, BATCH_TOKENS)
    ]

    @torch.no_grad()
    def run(out: Path, batches: list[Batch] = batches) -> dict[str, Any]:
        for batch in batches:
            model.tower.decoder(**batch.inputs(), use_cache=False)
        return {}

    _warmed(lambda out: run(out, [model.encode(prompts[:4])]))
    return run


def transformer_lens(config: Config) -> Run:
    """`run_with_cache` of the bridge with a names filter, last position only."""
    model = config.model()
    tokenizer, bridge = model.tokenizer, model.bridge()
    names = [f"blocks.{layer}.hook_resid_post" for layer in range(config.n_layers)]

    @torch.no_grad()
    def step(texts: list[str]) -> list[Tensor]:
        inputs = tokenizer(texts, padding=True, return_tensors="pt")
        _, cache = bridge.run_with_cache(
            inputs["input_ids"], attention_mask=inputs["attention_mask"], names_filter=names, pos_slice=-1
        )
        return [cache[name].reshape(len(texts), -1) for name in names]

    return _over_batches(step, config)


def nnsight(config: Config) -> Run:
    """A trace that saves each block's last position."""
    import nnsight as library

    model = config.model()
    tokenizer, traced = model.tokenizer, library.NNsight(model.module)

    @torch.no_grad()
    def step(texts: list[str]) -> list[Tensor]:
        inputs = tokenizer(texts, padding=True, return_tensors="pt")
        with traced.trace(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]):
            saved = library.save([])
            for block in traced.model.layers:
                saved.append(block.output[:, -1])
        return list(saved)

    return _over_batches(step, config)


def hidden_states(config: Config) -> Run:
    """The model's own `output_hidden_states`; its last entry is after the final norm."""
    model = config.model()

    @torch.no_grad()
    def step(texts: list[str]) -> list[Tensor]:
        inputs = model.tokenizer(texts, padding=True, return_tensors="pt")
        output = model.module(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], output_hidden_states=True
        )
        return [value[:, -1] for value in output.hidden_states[1:]]

    return _over_batches(step, config)


def _over_batches(step: Callable[[list[str]], list[Tensor]], config: Config) -> Run:
    """A peer over the prompts in given order, a file a batch."""
    texts = [prompt.text for prompt in config.prompts()]

    def run(out: Path, texts: list[str] = texts) -> dict[str, Any]:
        for i in range(0, len(texts), config.batch_size):
            layers = step(texts[i : i + config.batch_size])
            save_file({"values": torch.stack(layers)}, out / f"{i:07d}.safetensors")
        return {}

    _warmed(lambda out: run(out, texts[:4]))
    return run


ENGINES: dict[str, Callable[[Config], Run]] = {
    "limit": limit,
    "ours": ours,
    "transformer_lens": transformer_lens,
    "nnsight": nnsight,
    "hidden_states": hidden_states,
}


def _stored(engine: str, place: Path) -> Tensor:
    if engine == "ours":
        return StoredActivations(place).load().values
    return torch.cat([load_file(path)["values"] for path in sorted(place.glob("*.safetensors"))], dim=1)


def run(config: Config, *, threads: int, repeats: int) -> dict[str, Any]:
    """Time all engines; raises RuntimeError when one stored other values than ours."""
    norm = config.model().tower.norm

    @torch.no_grad()
    def check(places: dict[str, Path]) -> dict[str, float]:
        expected = _stored("ours", places["ours"])
        normed = torch.cat([expected[:-1], norm(expected[-1:])])
        errors = {}
        for engine in PEERS:
            found = _stored(engine, places[engine])
            errors[engine] = float((found - (normed if engine == "hidden_states" else expected)).abs().max())
            if not errors[engine] <= TOLERANCE:
                raise RuntimeError(f"{engine} stored values that differ from ours by {errors[engine]:.2g}")
        return errors

    result = interleave(
        "benchmarks.capture",
        list(ENGINES),
        config,
        threads=threads,
        repeats=repeats,
        memory=True,
        check=check,
    )
    lengths = [len(prompt.text.split()) for prompt in config.prompts()]
    given = [lengths[i : i + config.batch_size] for i in range(0, len(lengths), config.batch_size)]
    sorted_batches = by_length(lengths, config.batch_size, BATCH_TOKENS)
    stored = config.n_layers * config.n_prompts * config.d_model * 4
    engines = result["engines"]
    over_limit = paired_ratio(engines, "ours", "limit")
    over_ours = {engine: paired_ratio(engines, engine, "ours") for engine in PEERS}
    targets = [
        target("within 1.05 × the limit", f"{over_limit:.3f} ×", over_limit <= TARGET_LIMIT),
        target(
            "at least 2 × faster than each peer",
            f"{min(over_ours.values()):.2f} × at least",
            min(over_ours.values()) >= TARGET_PEER,
        ),
    ]
    ours_growth, batch_growth = (engines[engine]["peak_growth"] for engine in ("ours", "limit"))
    if ours_growth is not None:
        # the limit keeps nothing: what its process grows by is one batch
        budget = stored + batch_growth
        targets.append(
            target(
                "memory growth ≤ stored bytes + one batch (the limit's growth)",
                f"{mebibytes(ours_growth)} of {mebibytes(stored)} + {mebibytes(batch_growth)}",
                ours_growth <= budget,
            )
        )
    return result | {
        "config": config.model_dump(),
        "stored_bytes": stored,
        "padded_over_real_tokens": {
            "given order": sum(len(batch) * max(batch) for batch in given) / sum(lengths),
            "ours": sum(len(batch) * lengths[batch[0]] for batch in sorted_batches) / sum(lengths),
        },
        "over_limit": over_limit,
        "over_ours": over_ours,
        "cpu_over_limit": paired_ratio(engines, "ours", "limit", "cpu_seconds"),
        "cpu_over_ours": {engine: paired_ratio(engines, engine, "ours", "cpu_seconds") for engine in PEERS},
        "targets": targets,
        "machine": machine(),
    }


def tables(result: dict[str, Any]) -> str:
    """The timings as Markdown, then each target with met or missed."""
    rows = [
        "| engine | seconds, median (min to max) | times ours | in processor time | peak memory growth | "
        "largest difference |",
        "|---|---|---|---|---|---|",
    ]
    wall = {"ours": 1.0, "limit": 1 / result["over_limit"], **result["over_ours"]}
    cpu = {"ours": 1.0, "limit": 1 / result["cpu_over_limit"], **result["cpu_over_ours"]}
    for engine, label in LABELS.items():
        found, error = result["engines"][engine], result["agreement"].get(engine)
        rows.append(
            f"| {label} | {seconds(found)} | {wall[engine]:.2f} | {cpu[engine]:.2f} | "
            f"{mebibytes(found['peak_growth'])} | {'' if error is None else f'{error:.0e}'} |"
        )
    padded = result["padded_over_real_tokens"]
    note = (
        f"{seconds_note(result)} Tokens computed for each real token: {padded['given order']:.2f} in given order, "
        f"{padded['ours']:.2f} in our batches."
    )
    return "\n".join([*rows, "", note, "", verdicts(result["targets"])])
