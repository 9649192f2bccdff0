"""Generation: Hugging Face's own greedy tokens, the same in any batch, and a global random state left alone."""

import pytest
import tiny
import torch

from interp.errors import UserError
from interp.models.generation import generate

KINDS = sorted(tiny.FACTORIES)


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_is_argmax_step_by_step_and_independent_of_batch_mates(kind):
    model, prompts = tiny.model(kind), tiny.prompts(5)
    together = generate(model, prompts, max_new_tokens=6, progress=False)
    alone = [generate(model, [p], max_new_tokens=6, progress=False)[0] for p in prompts]
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]
    for prompt, completion in zip(prompts[:2], together, strict=False):
        ids = list(model.token_ids(prompt))
        for token in completion.token_ids:
            with torch.no_grad():
                assert int(model.module(torch.tensor([ids])).logits[0, -1].argmax()) == token
            ids.append(token)


def test_sampling_is_seeded_and_leaves_the_global_generator_alone():
    model, prompts = tiny.model(), tiny.prompts(5)
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    a, b, c = (
        generate(model, prompts, max_new_tokens=8, temperature=2.0, seed=s, progress=False) for s in (0, 0, 1)
    )
    assert torch.equal(torch.rand(1), expected)
    assert a == b and a != c


def test_end_of_turn_stops_and_is_not_part_of_the_answer():
    model = tiny.model()
    end = model.tokenizer.convert_tokens_to_ids("<|end|>")
    with torch.no_grad():
        model.module.lm_head.weight[end] = 0
        completions = generate(model, tiny.prompts(3), max_new_tokens=4, progress=False)
        assert all(not c.stopped and c.n_tokens == 4 for c in completions)
        model.tower.norm.weight.zero_()  # all logits equal: make the end token win by a bias
        model.module.lm_head.bias = torch.nn.Parameter(torch.eye(68)[end], requires_grad=False)
    completions = generate(model, tiny.prompts(3), max_new_tokens=4, progress=False)
    assert all(c.stopped and c.n_tokens == 0 and c.text == "" for c in completions)


def test_no_room_in_the_context_is_named():
    with pytest.raises(UserError, match="lower --max-new-tokens"):
        generate(tiny.model(), tiny.prompts(1), max_new_tokens=200)


def test_a_checkpoints_own_decoding_habits_are_left_out():
    model, prompts = tiny.model(), tiny.prompts()
    plain = generate(model, prompts, max_new_tokens=6, progress=False)
    own = model.module.generation_config
    own.repetition_penalty, own.no_repeat_ngram_size, own.suppress_tokens = 5.0, 1, list(range(20, 40))
    assert generate(model, prompts, max_new_tokens=6, progress=False) == plain
    assert model.module.generation_config is own and own.repetition_penalty == 5.0


def test_a_prefilled_answer_is_begun_and_goes_on_as_the_model_would():
    model = tiny.model()
    prompts = tiny.prompts(4)
    plain = generate(model, prompts, max_new_tokens=6, progress=False)
    begun = [" ".join(answer.text.split()[:2]) for answer in plain]
    again = generate(model, prompts, max_new_tokens=4, prefill=begun, progress=False)
    assert [a.token_ids for a in again] == [p.token_ids for p in plain], (
        "the model's own beginning changes nothing"
    )
    other = generate(model, prompts, max_new_tokens=4, prefill=["w1 w2"] * 4, progress=False)
    assert all(answer.text.startswith("w1 w2") and answer.n_tokens <= 6 for answer in other)
    with pytest.raises(UserError, match="1 prefilled answers for 4 prompts"):
        generate(model, prompts, prefill=["w1"], progress=False)
