"""A Llama whose refusal is known in closed form: one planted direction, moved by attention, read by the head.

Words of the first half carry `+2 r`, of the second half `−2 r`. Attention of block 1 averages the `r` component over the
prompt; the head answers `<refuse>` along `r` and `<comply>` along `c`, which the answer token carries. Everything else is
small noise. Ten blocks, so that the selection rule's depth limit leaves room.
"""

import tiny
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from interp.data.prompts import Prompt, PromptSet
from interp.models.model import Model

N_LAYERS, PLANTED_AT, WIDTH = 10, 1, 32
REFUSE, COMPLY = "w0", "w59"


def planted(seed: int = 0) -> tuple[Model, torch.Tensor]:
    """The model and its direction `r` (unit)."""
    config = LlamaConfig(**{**tiny.COMMON, "num_hidden_layers": N_LAYERS, "num_key_value_heads": 4})
    config.tie_word_embeddings = False
    generator = torch.Generator().manual_seed(seed)
    r, c = torch.linalg.qr(torch.randn(WIDTH, 2, generator=generator))[0].T
    with torch.random.fork_rng():
        model = LlamaForCausalLM(config)
    tokenizer = tiny.tokenizer()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(0.005 * torch.randn(parameter.shape, generator=generator))
        for block in model.model.layers:
            block.self_attn.q_proj.weight.zero_()
        attention = model.model.layers[PLANTED_AT].self_attn
        attention.v_proj.weight[0] += r
        attention.o_proj.weight[:, 0] += 0.4 * r
        words = torch.tensor(tokenizer.convert_tokens_to_ids(tiny.WORDS))
        sign = torch.cat([torch.ones(30), -torch.ones(30)])
        model.model.embed_tokens.weight[words] += 2.0 * sign[:, None] * r
        model.model.embed_tokens.weight[tokenizer.convert_tokens_to_ids("<|answer|>")] += c
        model.lm_head.weight[tokenizer.convert_tokens_to_ids(REFUSE)] += 6.0 * r
        model.lm_head.weight[tokenizer.convert_tokens_to_ids(COMPLY)] += 6.0 * c
    return Model.from_module(model, tokenizer, name="planted"), r


def prompt_set(harmful: bool, n: int, seed: int) -> PromptSet:
    words = tiny.WORDS[:30] if harmful else tiny.WORDS[30:]
    generator = torch.Generator().manual_seed(seed)
    label = "harmful" if harmful else "benign"
    return PromptSet(
        [
            Prompt(
                text=" ".join(words[int(i)] for i in torch.randint(30, (3 + k % 5,), generator=generator)),
                id=f"{label}-{seed}-{k}",
                label=label,
            )
            for k in range(n)
        ],
        name=label,
    )
