"""Tiny random models of every architecture of the table, with a word-level tokenizer and a chat template."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from interp.data.prompts import Prompt
from interp.models.likelihood import with_responses
from interp.models.model import Model

WORDS = [f"w{i}" for i in range(60)]
SPECIAL = ["<pad>", "<unk>", "<s>", "<|end|>", "<|user|>", "<|system|>", "<|assistant|>", "<|answer|>"]
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}<|assistant|><|answer|>{{ m['content'] }}<|end|>"
    "{% else %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><|answer|>{% endif %}"
)

COMMON = {
    "vocab_size": 68,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}


def _without(*names: str) -> dict:
    return {key: value for key, value in COMMON.items() if key not in names}


FACTORIES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**COMMON)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**COMMON)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**COMMON, head_dim=8)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**COMMON, head_dim=8)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**COMMON, head_dim=8, sliding_window=8)),
    "gemma3_text": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**COMMON, head_dim=8, sliding_window=8)),
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**COMMON)),
    "olmo2": lambda: Olmo2ForCausalLM(Olmo2Config(**COMMON)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(
            vocab_size=68,
            n_embd=32,
            n_layer=4,
            n_head=4,
            n_positions=128,
            bos_token_id=2,
            eos_token_id=3,
            pad_token_id=0,
        )
    ),
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**_without("num_key_value_heads"))),
}


def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    found = PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", pad_token="<pad>", bos_token="<s>", eos_token="<|end|>"
    )
    found.add_special_tokens({"additional_special_tokens": SPECIAL[4:]})
    found.chat_template = TEMPLATE
    return found


def module(kind: str = "llama", seed: int = 0):
    """A random model with weights large enough that every part of it matters."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        found = FACTORIES[kind]()
        for name, parameter in found.named_parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.5 if "emb" in name or "wte" in name else 0.15)
    return found.eval()


def model(kind: str = "llama", seed: int = 0) -> Model:
    return Model.from_module(module(kind, seed), tokenizer(), name=f"tiny-{kind}-{seed}")


def prompts(n: int = 6, seed: int = 0, longest: int = 14) -> list[Prompt]:
    """Prompts of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [1 + (3 * i + 2) % longest for i in range(n)]
    return [
        Prompt(
            text=" ".join(WORDS[int(k)] for k in torch.randint(len(WORDS), (length,), generator=generator)),
            id=f"p{seed}-{i}",
        )
        for i, length in enumerate(lengths)
    ]


def answered(n: int = 7) -> list[Prompt]:
    """Prompts and responses of different lengths."""
    words = ["w3", "w9", "w12", "w7", "w30"]
    return with_responses(prompts(n), [" ".join(words[: 1 + i % 5]) for i in range(n)])
