"""What per-example gradients are compared with: one forward and backward pass for each example alone."""

import torch
from torch import nn

from interp.data.prompts import Prompt
from interp.models.model import Model


def one_by_one(model: Model, prompts: list[Prompt], names) -> dict[str, torch.Tensor]:
    """The oracle: a forward and backward pass for each example alone, in fp32, (n, numel) by name."""
    parameters = dict(model.module.named_parameters(remove_duplicate=False))
    wanted = [parameters[name] for name in names]
    before = [parameter.requires_grad for parameter in wanted]
    rows = []
    for parameter in wanted:
        parameter.requires_grad_()
    for prompt in prompts:
        asked, answer = model.token_ids(prompt), model.response_ids(prompt)
        logits = model.module(torch.tensor([asked + answer]), use_cache=False).logits[0]
        loss = nn.functional.cross_entropy(logits[len(asked) - 1 : -1].float(), torch.tensor(answer))
        rows.append([g.flatten().float() for g in torch.autograd.grad(loss, wanted)])
    for parameter, required in zip(wanted, before, strict=True):
        parameter.requires_grad_(required)
    return {name: torch.stack(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest relative error of a row."""
    return float(((found - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)).max())
