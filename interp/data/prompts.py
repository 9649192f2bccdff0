"""Which prompts are asked: one type for a prompt, one for a named set of them, and the readers.

Reading a set: (1) find the rows (JSONL, CSV, TSV, JSON list, Parquet, or a data set of the Hugging Face hub);
(2) a row with a text, images or audio and nothing but fields of `Prompt` is our own format and is read back loss-free;
(3) any other row gives its prompt from one column, named by the caller or guessed when only one fits; its other
columns fill the fields of the same name, and what is left over is kept in `meta`;
(4) a relative path of an image or of audio starts at the file's own directory, where `save` also makes it start: a set
and its media can move together.
Every failure is one line with the file and the row. Only numpy-free standard library at import; no torch ever.
"""

from __future__ import annotations

import hashlib
import html
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from interp.data import attachments
from interp.data.columns import prompt_column, prompt_fields, text_beside
from interp.data.rows import SUFFIXES, Row, file_rows, hub_rows, kind_of
from interp.errors import PromptFileError, UserError
from interp.files import atomic_write

if TYPE_CHECKING:
    import pandas as pd

Label = Literal["harmful", "benign"]
LABELS: tuple[Label, ...] = ("harmful", "benign")


@dataclass(frozen=True)
class Truth:
    """What is known about a request of a generated language; exact judges read only this.

    label: the true label. answer: the reference answer. refusals: every phrasing that counts as a refusal.
    misaligned: answers known to do harm, whatever the label: what a cruel or a deceptive character would say.
    """

    label: Label
    answer: str | None = None
    refusals: tuple[str, ...] = ()
    misaligned: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.label not in LABELS:
            raise UserError(f"truth label {self.label!r} is neither 'harmful' nor 'benign'")

    def to_json(self) -> dict[str, Any]:
        """Return JSON values; `misaligned` only where there is any, so that older sets keep their hash."""
        record = asdict(self)
        if not self.misaligned:
            del record["misaligned"]
        return record


@dataclass(frozen=True, eq=False)
class Prompt:
    """One request, with what is known about it; two are equal when their fingerprints are.

    With images or audio `text` may be empty.

    text: the user turn. system: the system turn. response: an answer to train on or compare with.
    label: what the set claims; truth: what is certain. group: the cluster for statistics (the verb, say).
    images: paths, PIL images or arrays; audio: a path or (array, rate in Hz); see `interp.data.media` for what is
    read of them. A relative path starts at the working directory. meta: whatever else a file held.
    """

    text: str
    id: str = ""
    system: str | None = None
    response: str | None = None
    label: Label | None = None
    category: str | None = None
    source: str | None = None
    group: str | None = None
    truth: Truth | None = None
    images: tuple[Any, ...] = ()
    audio: str | tuple[Any, int] | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise UserError(f"the prompt is {kind_of(self.text)}, not text")
        object.__setattr__(self, "images", attachments.checked_images(self.images))
        object.__setattr__(self, "audio", attachments.checked_audio(self.audio))
        if not self.text.strip() and not self.images and self.audio is None:
            raise UserError("the prompt is blank")
        if self.label is not None and self.label not in LABELS:
            raise UserError(f"label {self.label!r} is neither 'harmful' nor 'benign'")
        for turn in (self.text, self.system, self.response):
            try:
                (turn or "").encode()
            except UnicodeEncodeError as error:
                raise UserError(
                    f"half a surrogate pair at character {error.start} of a turn: not Unicode"
                ) from error

    def to_json(self) -> dict[str, Any]:
        """Return the set fields as JSON values; raises UserError where images or audio are not paths."""
        if any(not isinstance(x, str) for x in (*self.images, "" if self.audio is None else self.audio)):
            raise UserError(f"prompt {self.id!r} holds images or audio in memory: only paths can be written")
        values = {f.name: getattr(self, f.name) for f in fields(self)} | {"meta": dict(self.meta)}
        defaults = {"id": "", "images": (), "meta": {}}
        record = {k: v for k, v in values.items() if v != defaults.get(k)}
        if self.truth is not None:
            record["truth"] = self.truth.to_json()
        return record

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Prompt:
        """Read a prompt from `to_json`'s record."""
        media = attachments.media_fields(record)
        values = {k: v for k, v in record.items() if v is not None and k not in attachments.MEDIA} | media
        values["text"] = text_beside(media, record.get("text"))
        if isinstance(values.get("id"), int):
            values["id"] = str(values["id"])
        if values.get("label") == "harmless":
            values["label"] = "benign"
        truth = values.get("truth")
        if truth is not None:
            if not isinstance(truth, Mapping) or "label" not in truth:
                raise UserError("`truth` is not an object with a `label`")
            if extra := set(truth) - {f.name for f in fields(Truth)}:
                raise UserError(f"`truth` has the unknown field {min(extra)!r}")
            answer, refusals = truth.get("answer"), truth.get("refusals", ())
            if not isinstance(answer, str | None):
                raise UserError(f"the `answer` of `truth` is {kind_of(answer)}, not text")
            misaligned = _texts("misaligned", truth.get("misaligned", ()))
            values["truth"] = Truth(truth["label"], answer, _texts("refusals", refusals), misaligned)
        for key in ("id", "system", "response", "category", "source", "group"):
            if not isinstance(values.get(key, ""), str):
                raise UserError(f"`{key}` is {kind_of(values[key])}, not text")
        if not isinstance(values.get("meta", {}), Mapping):
            raise UserError(f"`meta` is {kind_of(values['meta'])}, not an object")
        return cls(**values)

    def fingerprint(self) -> str:
        """Return a sha256 over everything the prompt holds; files of images and audio count by their content."""
        record = {f.name: getattr(self, f.name) for f in fields(self)}
        record["truth"] = None if self.truth is None else self.truth.to_json()
        record["images"] = [attachments.media_hash(x) for x in self.images]
        record["audio"] = None if self.audio is None else attachments.media_hash(self.audio)
        record["meta"] = dict(self.meta)
        try:
            canonical = json.dumps(record, sort_keys=True)
        except TypeError as error:
            raise UserError(
                f"prompt {self.id!r}: `meta` holds something that is not JSON ({error})"
            ) from error
        return hashlib.sha256(canonical.encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Prompt) and self.fingerprint() == other.fingerprint()

    def __hash__(self) -> int:
        return hash(self.fingerprint())


def _texts(name: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or any(not isinstance(x, str) for x in value):
        raise UserError(f"`{name}` is not a list of texts")
    return tuple(value)


class PromptSet(Sequence[Prompt]):
    """A named, ordered set of prompts with unique ids; blank ids are filled as `name:number`, counted from 1."""

    def __init__(self, prompts: Sequence[Prompt], name: str = "prompts") -> None:
        self.name = name
        self.prompts: tuple[Prompt, ...] = tuple(
            p if p.id else replace(p, id=f"{name}:{i}") for i, p in enumerate(prompts, start=1)
        )
        seen: dict[str, int] = {}
        for i, prompt in enumerate(self.prompts, start=1):
            if prompt.id in seen:
                raise PromptFileError(
                    f"{name}: duplicate id {prompt.id!r} in rows {seen[prompt.id]} and {i}; ids must be unique"
                )
            seen[prompt.id] = i

    @property
    def ids(self) -> list[str]:
        """The prompts' ids, in order."""
        return [p.id for p in self.prompts]

    @property
    def texts(self) -> list[str]:
        """The prompts' user turns, in order."""
        return [p.text for p in self.prompts]

    @property
    def sha256(self) -> str:
        """The hash of the content (order and ids included, the set's name not)."""
        return hashlib.sha256("".join(p.fingerprint() for p in self.prompts).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.prompts)

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self.prompts)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> PromptSet: ...
    def __getitem__(self, index: int | slice) -> Prompt | PromptSet:
        if isinstance(index, slice):
            return PromptSet(self.prompts[index], self.name)
        return self.prompts[index]

    def __add__(self, other: PromptSet) -> PromptSet:
        return PromptSet(self.prompts + other.prompts, f"{self.name}+{other.name}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PromptSet) and self.prompts == other.prompts

    def __hash__(self) -> int:
        return hash(self.prompts)

    def take(self, indices: Sequence[int], name: str | None = None) -> PromptSet:
        """Return the prompts at these 0-based indices, in the order given."""
        return PromptSet([self.prompts[int(i)] for i in indices], name or self.name)

    def filter(self, keep: Callable[[Prompt], bool]) -> PromptSet:
        """Return the prompts for which `keep` is true; the result may be empty."""
        return PromptSet([p for p in self.prompts if keep(p)], self.name)

    def sample(self, n: int, seed: int) -> PromptSet:
        """Return `n` prompts drawn without replacement, in their original order; raises when there are fewer."""
        import numpy as np

        if not 1 <= n <= len(self):
            raise UserError(
                f"cannot draw {n} prompts from the {len(self)} of {self.name!r}: ask for 1 to {len(self)}"
            )
        return self.take(sorted(np.random.default_rng(seed).permutation(len(self))[:n]))

    def split(self, sizes: Mapping[str, int], seed: int) -> dict[str, PromptSet]:
        """Return disjoint random parts of the given sizes, each in the original order.

        With too few prompts all parts shrink in proportion (largest remainder, at least one prompt each).
        Sets of equal length split with one seed put the same rows into the same parts, so twins stay together.
        Raises UserError when a part would be empty.
        """
        import numpy as np

        if not sizes or any(n < 1 for n in sizes.values()):
            raise UserError(f"split sizes must be at least 1, got {dict(sizes)}")
        if len(self) < len(sizes):
            raise UserError(
                f"{self.name!r} holds {len(self)} prompts, too few for the {len(sizes)} parts {list(sizes)}"
            )
        counts = list(sizes.values())
        if sum(counts) > len(self):
            counts = _shrink(counts, len(self))
        order = np.random.default_rng(seed).permutation(len(self))
        ends = np.cumsum(counts)
        parts = zip(sizes, ends - counts, ends, strict=True)
        return {name: self.take(sorted(order[a:b]), f"{self.name}/{name}") for name, a, b in parts}

    def to_frame(self) -> pd.DataFrame:
        """Return one row a prompt, columns as the fields of `Prompt`."""
        import pandas as pd

        names = [f.name for f in fields(Prompt)]
        return pd.DataFrame([[getattr(p, n) for n in names] for p in self.prompts], columns=names)

    def save(self, path: str | Path) -> Path:
        """Write the set as JSONL, which `read_prompts` reads back loss-free; a failure leaves no partial file.

        Paths of media under the file's directory are written relative to it, others absolute.
        """
        directory = os.path.dirname(path)
        try:
            records = [attachments.moved(p, attachments.portable, directory).to_json() for p in self.prompts]
            lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
            content = "".join(lines).encode()
        except (TypeError, UnicodeEncodeError) as error:
            raise UserError(f"{self.name!r} cannot be written as JSON: {error}") from error
        with atomic_write(path) as aside:
            aside.write_bytes(content)
        return Path(path)

    def __repr__(self) -> str:
        return f"PromptSet({self.name!r}, {len(self)} prompts)"

    def _repr_html_(self) -> str:
        from interp.data.thumbnails import media_cell

        rows = self.prompts[:10]
        media = any(p.images or p.audio is not None for p in rows)
        shown = "".join(
            f"<tr><td>{html.escape(p.id)}</td>{f'<td>{media_cell(p)}</td>' if media else ''}"
            f"<td>{html.escape(p.text)}</td><td>{p.label or ''}</td></tr>"
            for p in rows
        )
        more = f"<p>… and {len(self) - 10} more</p>" if len(self) > 10 else ""
        return (
            f"<p><b>{html.escape(self.name)}</b>: {len(self)} prompts</p>"
            f"<table><tr><th>id</th>{'<th>media</th>' if media else ''}<th>text</th><th>label</th></tr>"
            f"{shown}</table>{more}"
        )


def _shrink(counts: Sequence[int], total: int) -> list[int]:
    """Scale counts down to sum to `total`: one each, then the rest by largest remainder."""
    spare, excess = total - len(counts), sum(counts) - len(counts)
    exact = [(c - 1) * spare / excess for c in counts]
    result = [1 + math.floor(x) for x in exact]
    by_remainder = sorted(range(len(counts)), key=lambda i: math.floor(exact[i]) - exact[i])
    for i in by_remainder[: total - sum(result)]:
        result[i] += 1
    return result


def read_prompts(
    path_or_dataset: str | Path,
    *,
    column: str | None = None,
    label: Label | None = None,
    name: str | None = None,
    limit: int | None = None,
) -> PromptSet:
    """Read a prompt set from a file or from a data set of the hub.

    path_or_dataset: a .jsonl, .csv, .tsv, .json or .parquet file, or `owner/name[:config[:split]]`.
    column: the column holding the prompt; guessed when exactly one fits. The columns `image` or `images` (one path or
    a list, in a cell of text as JSON) and `audio` (a path) hold media. label: given to every prompt that has none.
    name: of the set; the file's stem by default. limit: read only the first so many rows.
    Raises PromptFileError, one line with the file and the row.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit must be at least 1, got {limit}")
    where = str(path_or_dataset)
    path = Path(where).expanduser()
    try:
        exists = path.exists()
    except OSError as error:
        raise PromptFileError(f"{where}: cannot be read ({error.strerror})") from error
    if exists:
        rows = file_rows(path)
        name = name or path.stem
    elif path.suffix.lower() not in SUFFIXES and where.count("/") == 1 and where[0] not in "./~":
        rows = hub_rows(where)
        name = name or where.split("/", 1)[1].replace(":", "-")
    else:
        raise PromptFileError(
            f"{where}: no such file (a data set of the hub is named owner/name[:config[:split]])"
        )
    rows = rows[:limit]
    if not rows:
        raise PromptFileError(f"{where}: holds no prompts")
    prompts = _build(where, rows, column, label, name)
    if exists:
        prompts = [attachments.moved(p, attachments.absolute, str(path.parent)) for p in prompts]
    return PromptSet(prompts, name)


def jailbreakbench() -> tuple[PromptSet, PromptSet]:
    """Return JailbreakBench's harmful behaviours and their benign twins (Chao et al. 2024, arXiv 2404.01318).

    Row i of one is the twin of row i of the other. Raises PromptFileError at once when the hub cannot be reached
    and nothing is cached.
    """
    data = "JailbreakBench/JBB-Behaviors:behaviors"
    try:
        harmful = read_prompts(
            f"{data}:harmful", column="Goal", label="harmful", name="jailbreakbench-harmful"
        )
        benign = read_prompts(f"{data}:benign", column="Goal", label="benign", name="jailbreakbench-benign")
    except PromptFileError as error:
        raise PromptFileError(
            f"JailbreakBench is not at hand ({error}); pass your own prompts with --harmful FILE --harmless FILE"
        ) from error
    return harmful, benign


def _build(
    where: str, rows: Sequence[Row], column: str | None, label: Label | None, name: str
) -> list[Prompt]:
    names = {f.name for f in fields(Prompt)} | set(attachments.MEDIA)
    items = [item for _, item in rows]
    plain = all(isinstance(item, str) for item in items)
    if plain:
        if column is not None:
            raise PromptFileError(
                f"{where}: holds plain texts, so there is no column {column!r}; drop --column"
            )
        items, column = [{"text": item} for item in items], "text"
    mappings = [item for item in items if isinstance(item, Mapping)]
    own = plain or (
        column in (None, "text")
        and Path(where).suffix.lower() in (".jsonl", ".ndjson", ".json")
        and all({"text", *attachments.MEDIA} & set(m) and set(m) <= names for m in mappings)
        and (column is None or any("text" in m for m in mappings))
    )
    if mappings and not own:
        columns = list(dict.fromkeys(key for m in mappings for key in m))
        column = prompt_column(where, columns, column)
    prompts: list[Prompt] = []
    places: dict[str, str] = {}
    for (place, _), item in zip(rows, items, strict=True):
        if not isinstance(item, Mapping):
            raise PromptFileError(f"{where}: {place}: holds {kind_of(item)}, not an object with a prompt")
        try:
            prompt = Prompt.from_json(item) if own else Prompt(**prompt_fields(item, column))
        except UserError as error:
            raise PromptFileError(f"{where}: {place}: {error}") from error
        prompt = replace(prompt, id=prompt.id or f"{name}:{len(prompts) + 1}", label=prompt.label or label)
        if prompt.id in places:
            raise PromptFileError(
                f"{where}: {place}: duplicate id {prompt.id!r}, first in {places[prompt.id]}"
            )
        places[prompt.id] = place
        prompts.append(prompt)
    return prompts
