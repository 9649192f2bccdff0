"""In which modality is each request asked, and which prompts ask the same? Read from the prompts themselves.

1. A prompt's modality is its `modality` column, else what is attached to it: `text`, `image`, `audio` or `image and audio`.
2. Two prompts of different modalities ask the same when their `pair` columns agree, else when their ids agree once `-MODALITY` is
   taken out of them (`cut-bread-image-2` and `cut-bread-text-2`).
3. The reference is the first modality without attachments, else the first there is: the others are compared with it.

Prompts of the same request stay in one part of a split. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from interp.data.prompts import Prompt, PromptSet
from interp.errors import UserError

TEXT = "text"


def media_of(prompt: Prompt) -> tuple[str, ...]:
    """What is attached to a prompt: `image`, `audio`, both or nothing."""
    return ("image",) * bool(prompt.images) + ("audio",) * (prompt.audio is not None)


def modality_of(prompt: Prompt) -> str:
    """The prompt's own `modality` column, else what is attached to it; UserError where the column holds no text."""
    named = prompt.meta.get("modality")
    if named is None:
        return " and ".join(media_of(prompt)) or TEXT
    if not isinstance(named, str) or not named.strip():
        raise UserError(
            f"prompt {prompt.id!r}: its `modality` is {named!r}; give a name, or leave the column out"
        )
    return named.strip()


def request_of(prompt: Prompt) -> str:
    """What prompts of the same request share: the `pair` column, else the id without `-MODALITY`."""
    pair = prompt.meta.get("pair")
    if pair is not None:
        return str(pair)
    head, mark, tail = prompt.id.rpartition(f"-{modality_of(prompt)}")
    return head + tail if mark and (not tail or tail.startswith("-")) else prompt.id


@dataclass(frozen=True, eq=False)
class Modalities:
    """The prompts of a study by modality, the reference first; each holds `harmful_train`, `harmful_val`, … of its own.

    paired: whether prompts of different modalities ask the same requests, row by row. left_out: prompts without a partner in every
    modality, which no part holds.
    """

    parts: Mapping[str, Mapping[str, PromptSet]]
    paired: bool
    left_out: int

    @property
    def reference(self) -> str:
        """The modality that the others are compared with."""
        return next(iter(self.parts))

    def media(self, modality: str) -> tuple[str, ...]:
        """What is attached to every prompt of a modality."""
        prompts = [prompt for part in self.parts[modality].values() for prompt in part]
        return tuple(kind for kind in ("image", "audio") if all(kind in media_of(p) for p in prompts))


def split_by_modality(
    kinds: Mapping[str, PromptSet], sizes: Mapping[str, int], seed: int
) -> Modalities | None:
    """Split sets of prompts (`harmful`, `harmless`) by modality and by part; None where no prompt has anything attached.

    sizes: requests of each kind by part, shrunk in proportion where there are fewer. Where modalities share requests only those in all
    of them are kept, in the same order; where they share none each is split by itself.
    Raises UserError naming the prompt when two of one modality ask the same, and when a kind lacks a modality that another has.
    """
    if not any(media_of(prompt) for prompts in kinds.values() for prompt in prompts):
        return None
    by_kind = {kind: _by_modality(kind, prompts) for kind, prompts in kinds.items()}
    names = _ordered([prompt for prompts in kinds.values() for prompt in prompts])
    if taken := sorted({"random", "shuffled"} & set(names)):
        raise UserError(f"{taken[0]!r} is the name of a control; give that `modality` another")
    for kind, found in by_kind.items():
        if missing := [name for name in names if name not in found]:
            raise UserError(
                f"no {kind} prompt is of modality {missing[0]!r}; give {kind} prompts in every modality, or name it in a "
                "`modality` column"
            )
    shared = {
        kind: set.intersection(*(set(found[name]) for name in names)) for kind, found in by_kind.items()
    }
    paired = len(names) > 1 and all(shared.values())
    parts: dict[str, dict[str, PromptSet]] = {name: {} for name in names}
    left_out = 0
    for kind, found in by_kind.items():
        for name in names:
            # in the order of the reference, so that one seed puts the same requests into the same parts
            keys = [key for key in found[names[0] if paired else name] if not paired or key in shared[kind]]
            left_out += len(found[name]) - len(keys)
            whole = PromptSet([found[name][key] for key in keys], f"{kind} {name}")
            for part, prompts in whole.split(sizes, seed).items():
                parts[name][f"{kind}_{part}"] = PromptSet(list(prompts), name=f"{kind} {part}")
    return Modalities(parts, paired, left_out)


def _by_modality(kind: str, prompts: Sequence[Prompt]) -> dict[str, dict[str, Prompt]]:
    """The prompts by modality and request, in order."""
    found: dict[str, dict[str, Prompt]] = {}
    for prompt in prompts:
        same = found.setdefault(modality_of(prompt), {})
        key = request_of(prompt)
        if key in same:
            raise UserError(
                f"{kind} prompts {same[key].id!r} and {prompt.id!r} ask the same ({key!r}) in the same modality "
                f"({modality_of(prompt)}); give each request its own `pair`, or its own `modality`"
            )
        same[key] = prompt
    return found


def _ordered(prompts: Sequence[Prompt]) -> list[str]:
    """The modalities in order of appearance, the first without attachments before all others."""
    names = list(dict.fromkeys(modality_of(prompt) for prompt in prompts))
    attached = {modality_of(prompt) for prompt in prompts if media_of(prompt)}
    reference = next((name for name in names if name not in attached), names[0])
    return [reference, *(name for name in names if name != reference)]
