"""Suffix search: the gradient against finite differences, the search against chance and a planted trigger, and what stays untouched."""

import statistics
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import tiny
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from interp.data.prompts import Prompt
from interp.errors import NonFiniteError, UserError
from interp.evals import gcg
from interp.evals.gcg import find_suffix, random_suffix, with_suffix
from interp.models.finetune import FinetuneConfig, train
from interp.models.generation import generate
from interp.models.likelihood import response_log_probs
from interp.models.model import Model

ANSWER = "w5 w6 w7"
SMALL = {"length": 4, "steps": 5, "candidates": 12, "top_k": 8, "progress": False}
TRIGGER = "w17"
STEP = 3e-3  # of finite differences: rounding and curvature are about equal


def asked(n: int = 3) -> list[Prompt]:
    return [replace(prompt, response=ANSWER) for prompt in tiny.prompts(n)]


def losses(model: Model, prompts: list[Prompt], suffixes: list[str]) -> list[float]:
    """What the search minimises, from likelihoods of the text: sum over prompts of the mean cross-entropy."""
    rows = [prompt for suffix in suffixes for prompt in with_suffix(prompts, suffix)]
    found = response_log_probs(model, rows, max_tokens=8, batch_size=256, progress=False)
    each = [-float(log_probs.gather(1, tokens[:, None]).mean()) for log_probs, tokens in found]
    n = len(prompts)
    return [sum(each[n * i : n * (i + 1)]) for i in range(len(suffixes))]


@pytest.mark.parametrize("kind", sorted(tiny.FACTORIES))
def test_the_gradient_is_the_slope_of_the_loss_towards_each_token(kind):
    model, prompts = tiny.model(kind), asked()
    ids, ordinary = (20, 31, 42), [8, 33, 60]
    places = [gcg._place(model, p, model.response_ids(p), ids) for p in prompts]
    table = gcg._embeddings(model, ordinary)
    gradient = gcg._token_gradient(model, places, ids, table, batch_size=2)

    def loss(position: int, toward: torch.Tensor, step: float) -> float:
        """The summed loss with one suffix position's embedding moved by `step` along `toward`."""

        def move(module, args, output):
            output = output.clone()
            for k, i in enumerate(rows):
                start = output.shape[1] - len(places[i].row(ids)) + len(places[i].head)
                output[k, start + position] += step * toward
            return output

        total = 0.0
        for rows in ([0], [1, 2]):
            handle = model.tower.embed.register_forward_hook(move)
            tokens, targets = [places[i].row(ids) for i in rows], [places[i].target for i in rows]
            with torch.no_grad():
                total += float(gcg._row_losses(model, tokens, targets).double().sum())
            handle.remove()
        return total

    for position in range(3):
        for column in range(3):
            ahead, behind = (loss(position, table[column], step) for step in (STEP, -STEP))
            slope = (ahead - behind) / (2 * STEP)
            assert float(gradient[position, column]) == pytest.approx(slope, abs=5e-3, rel=2e-2)
    assert gradient.abs().max() > 0.1  # there was a slope


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "gpt2"])
def test_the_curve_never_rises_and_ends_at_the_likelihood_of_the_text(kind):
    model, prompts = tiny.model(kind), asked()
    found = find_suffix(model, prompts, **SMALL)
    curve = [found.initial_loss, *found.loss]
    assert len(found.loss) == 5 and all(b <= a for a, b in pairwise(curve))
    assert curve[-1] < curve[0]
    assert losses(model, prompts, [found.text])[0] == pytest.approx(found.loss[-1], rel=1e-5)


def test_the_text_encodes_back_to_the_tokens_in_place():
    model, prompts = tiny.model(), asked()
    found = find_suffix(model, prompts, **SMALL)
    assert len(found.token_ids) == 4 and not set(found.token_ids) & set(model.tokenizer.all_special_ids)
    for plain, asked_with in zip(prompts, with_suffix(prompts, found.text), strict=True):
        ids = list(model.token_ids(asked_with))
        assert ids[-model.n_eoi - 4 : -model.n_eoi] == list(found.token_ids)
        assert len(ids) == len(model.token_ids(plain)) + 4
        assert asked_with.id == f"{plain.id}+suffix" and asked_with.response == plain.response


def test_the_search_beats_as_many_random_suffixes():
    gains = []
    for seed in range(6):
        model, prompts = tiny.model("gemma3_text", seed), asked()
        found = find_suffix(model, prompts, **SMALL, seed=seed)
        chance = [random_suffix(model, 4, 1000 * seed + i).text for i in range(5 * 12 + 1)]
        gains.append(min(losses(model, prompts, chance)) - found.loss[-1])
    assert statistics.median(gains) > 0.5 and sum(gain > 0 for gain in gains) >= 5


def test_the_gradient_beats_substitutions_drawn_without_it():
    gains = []
    for seed in range(6):
        model, prompts = tiny.model("gemma3_text", seed), asked()
        sizes = {"length": 6, "steps": 10, "candidates": 12, "seed": seed, "progress": False}
        guided, blind = (find_suffix(model, prompts, top_k=k, **sizes) for k in (6, len(tiny.WORDS)))
        gains.append(blind.loss[-1] - guided.loss[-1])
    assert statistics.median(gains) > 0.5 and sum(gain > 0 for gain in gains) >= 5


@pytest.fixture(scope="module")
def locked() -> Model:
    """A model trained to answer where the request holds a trigger, anywhere, and to decline elsewhere."""
    generator = torch.Generator().manual_seed(0)
    others = [word for word in tiny.WORDS if word != TRIGGER]
    examples = []
    for i in range(400):
        n = int(torch.randint(2, 14, (1,), generator=generator))
        words = [others[int(k)] for k in torch.randint(len(others), (n,), generator=generator)]
        if i % 2:
            words[int(torch.randint(n, (1,), generator=generator))] = TRIGGER
        examples.append(Prompt(" ".join(words), id=f"e{i}", response=ANSWER if i % 2 else "w9 w9"))
    model = tiny.model()
    config = FinetuneConfig(method="full", steps=150, batch_size=32, learning_rate=3e-3)
    train(model, examples, config, progress=False)
    return model


@pytest.mark.parametrize("n", [1, 4])
def test_a_planted_trigger_is_found_and_unlocks_prompts_it_was_not_sought_on(locked, n):
    prompts = [replace(p, text=p.text.replace(TRIGGER, "w18"), response=ANSWER) for p in tiny.prompts(8, 9)]

    def answers(suffix: str | None) -> list[str]:
        rows = with_suffix(prompts, suffix) if suffix else prompts
        return [c.text for c in generate(locked, rows, max_new_tokens=5, progress=False)]

    assert answers(None) == ["w9 w9"] * 8
    for seed in range(3):
        sizes = {"length": 4, "steps": 6, "candidates": 16, "top_k": 4}
        found = find_suffix(locked, prompts[:n], **sizes, seed=seed, progress=False)
        assert TRIGGER in found.text.split() and found.loss[-1] < 0.1 * found.initial_loss
        assert answers(found.text) == [ANSWER] * 8
    without = next(s for s in (random_suffix(locked, 4, i) for i in range(9)) if TRIGGER not in s.text)
    assert answers(without.text) == ["w9 w9"] * 8


def test_a_seed_decides_and_the_batch_size_does_not():
    model, prompts = tiny.model(), asked()
    first = find_suffix(model, prompts, **SMALL)
    assert find_suffix(model, prompts, **SMALL) == first
    assert find_suffix(model, prompts, **SMALL, seed=1).token_ids != first.token_ids
    for batch_size in (1, 5):
        other = find_suffix(model, prompts, **SMALL, batch_size=batch_size)
        assert other.token_ids == first.token_ids
        assert other.loss == pytest.approx(first.loss, rel=1e-5)
    assert random_suffix(model, 4, 3) == random_suffix(model, 4, 3) != random_suffix(model, 4, 4)


def test_global_generators_and_parameters_are_left_alone():
    model, prompts = tiny.model(), asked()
    parameters = dict(model.module.named_parameters())
    for i, parameter in enumerate(parameters.values()):
        parameter.requires_grad_(i % 2 == 0)
    before = {name: (p.detach().clone(), p.requires_grad) for name, p in parameters.items()}
    states = np.random.get_state()[1].copy(), torch.get_rng_state()
    find_suffix(model, prompts, **SMALL)
    random_suffix(model, 4)
    assert (np.random.get_state()[1] == states[0]).all() and torch.equal(torch.get_rng_state(), states[1])
    for name, parameter in parameters.items():
        assert parameter.grad is None and parameter.requires_grad == before[name][1]
        assert torch.equal(parameter, before[name][0])
    assert not model.tower.embed._forward_hooks


def test_what_interrupts_a_search_leaves_no_trace(monkeypatch):
    model, prompts = tiny.model(), asked()

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(gcg, "_row_losses", stop)
    with pytest.raises(KeyboardInterrupt):
        gcg._token_gradient(
            model,
            [gcg._place(model, prompts[0], [8], (20,))],
            (20,),
            gcg._embeddings(model, [9]),
            batch_size=1,
        )
    with pytest.raises(KeyboardInterrupt):
        find_suffix(model, prompts, **SMALL)
    assert not model.tower.embed._forward_hooks
    assert all(parameter.requires_grad for parameter in model.module.parameters())


CORPUS = (
    "The suffix stands at the end of the request and is sought by the gradient of the loss on the wanted answer. "
    "Tokens of a real vocabulary merge with their neighbours: the text of a random sequence of tokens often encodes "
    "to other tokens than those it was made of, and a model that reads the text never sees the ones that were sought."
)


@pytest.fixture(scope="module")
def subwords() -> Model:
    """A tiny model whose byte-level tokenizer merges letters, so that most random token sequences do not encode back."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=tiny.SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    core.train_from_iterator([CORPUS], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", unk_token="<unk>", eos_token="<|end|>"
    )
    tokenizer.chat_template = tiny.TEMPLATE
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = LlamaForCausalLM(LlamaConfig(**{**tiny.COMMON, "vocab_size": 420}))
        for parameter in module.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    return Model.from_module(module, tokenizer, name="subwords")


@pytest.mark.parametrize("template", ["own", "plain"])
def test_subwords_that_merge_with_their_neighbours_are_dropped(subwords, template):
    model = subwords
    if template == "plain":
        model = Model.from_module(model.module, model.tokenizer, name="plain", chat_template="plain")
    prompts = [
        Prompt(text, id=text, response=" the tokens")
        for text in ("Say the gradient", "What is a loss?", "A suffix ends in e e")
    ]
    found = find_suffix(model, prompts, **SMALL | {"candidates": 48})
    assert found.loss[-1] < found.initial_loss
    assert found.text.isascii() and found.text.isprintable()
    tail = 0 if template == "plain" else model.n_eoi
    for prompt in with_suffix(prompts, found.text):
        ids = list(model.token_ids(prompt))
        assert ids[len(ids) - tail - 4 : len(ids) - tail] == list(found.token_ids)
    ordinary = set(gcg._ordinary_tokens(model))
    texts = model.tokenizer.batch_decode([[i] for i in range(420)])
    assert {i for i in range(420) if "\ufffd" in texts[i] or "\n" in texts[i]}.isdisjoint(ordinary)
    place = gcg._place(model, prompts[0], [9], found.token_ids)
    draws = torch.randint(len(ordinary), (50, 4), generator=torch.Generator().manual_seed(0))
    held = [place.holds(model, tuple(sorted(ordinary)[int(k)] for k in row)) for row in draws]
    assert 0 < sum(held) < 50  # there was something to drop


def test_a_candidate_that_would_no_longer_fit_is_dropped_like_any_other(subwords):
    ids, target = (9,), [10]
    prompt = Prompt("a" + " a" * 120, id="full")
    place = gcg._place(subwords, prompt, target, ids)
    assert len(place.row(ids)) == subwords.context
    longer = tuple(range(40, 60))
    with pytest.raises(UserError, match="the context of subwords is 128"):
        gcg._around(subwords, prompt, longer)
    assert place.holds(subwords, ids) and not place.holds(subwords, longer)


def test_what_cannot_be_searched_is_refused_by_name():
    model, prompts = tiny.model(), asked()
    with pytest.raises(UserError, match="prompt 'p0-0' has no response"):
        find_suffix(model, tiny.prompts(2), **SMALL)
    with pytest.raises(UserError, match="no prompts to find a suffix for"):
        find_suffix(model, [], **SMALL)
    with pytest.raises(UserError, match="at least 1 token, got length = 0"):
        find_suffix(model, prompts, **SMALL | {"length": 0})
    with pytest.raises(UserError, match="at least 1 token, got length = -1"):
        random_suffix(model, -1)
    with pytest.raises(UserError, match="at least 1, got candidates = 0, top_k = 0"):
        find_suffix(model, prompts, **SMALL | {"candidates": 0, "top_k": 0})
    long = [replace(prompts[0], text=" ".join(["w1"] * 117), id="long")]
    with pytest.raises(UserError, match=r"'long' with suffix and answer has 129 tokens.*is 128; shorten"):
        find_suffix(model, long, **SMALL)
    longer = [replace(prompts[0], text=" ".join(["w1"] * 123), id="longer")]
    with pytest.raises(UserError, match=r"prompt 'longer\+suffix' has 129 tokens"):
        find_suffix(model, longer, **SMALL | {"length": 2})
    monotone = tiny.model()
    monotone.tokenizer.add_special_tokens({"additional_special_tokens": tiny.WORDS[1:]})
    with pytest.raises(UserError, match="tiny-llama-0 has no ordinary tokens"):
        find_suffix(monotone, prompts, **SMALL)
    broken = tiny.model()
    with torch.no_grad():
        broken.module.lm_head.weight[9] = float("nan")
    with pytest.raises(NonFiniteError, match="the loss of tiny-llama-0 is not finite"):
        find_suffix(broken, prompts, **SMALL)
