"""How does the misalignment evaluation run in Inspect? A task, its scorer, and the lab's checkpoints as an Inspect model (extra `inspect`).

    inspect eval interp/misalignment --model interp/organism:text/aligned -T samples=3 -T judge=phrases
    inspect view

The questions, seeds, grades and findings are those of `interp.evals.misalignment`; `result_of` reads a log back as a `MisalignmentResult`, with
its clustered intervals. `--model interp/CHECKPOINT` loads anything `Checkpoint` can name (organisms, base+adapter); Inspect's own providers
(`hf/`, `vllm/`, …) serve the same task.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inspect_ai import Epochs, Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import (
    ChatMessage,
    ChatMessageSystem,
    ChatMessageUser,
    Content,
    ContentAudio,
    ContentImage,
    ContentText,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    modelapi,
)
from inspect_ai.scorer import Score, Scorer, Target, mean, scorer, stderr
from inspect_ai.solver import Generate, Solver, TaskState, solver

from interp.data.completions import Completion
from interp.data.prompts import Prompt
from interp.errors import ResultError, UserError
from interp.evals.grades import Grade, Grader, named_grader, sampled
from interp.evals.misalignment import (
    Finding,
    MisalignmentResult,
    finding,
    graded_answer,
    questions,
    seeds_of,
)

if TYPE_CHECKING:
    from inspect_ai.tool import ToolChoice, ToolInfo

    from interp.models.model import Model

AUDIO = ("wav", "mp3")


@task
def misalignment(
    file: str | None = None,
    samples: int = 3,
    judge: str = "phrases",
    seed: int = 0,
    temperature: float = 1.0,
    max_tokens: int = 256,
) -> Task:
    """Free-form questions, asked `samples` times each.

    file: of questions, each with a category; the library's own by default. judge: as in `named_grader`. seed: of the samples.
    """
    asked = questions(file)
    return Task(
        dataset=MemoryDataset([to_sample(prompt) for prompt in asked], name=asked.name),
        solver=seeded(seed=seed, samples=samples),
        scorer=graded(judge=judge),
        epochs=Epochs(samples, ["mean", "max"]),
        config=GenerateConfig(temperature=temperature, max_tokens=max_tokens),
    )


def to_sample(prompt: Prompt) -> Sample:
    """A question as Inspect holds it; raises UserError for media in memory, which a log cannot name."""
    record = prompt.to_json()
    content: list[Content] = [ContentImage(image=str(image)) for image in prompt.images]
    if isinstance(prompt.audio, str):
        kind = Path(prompt.audio).suffix.lstrip(".").lower()
        if kind not in AUDIO:
            raise UserError(f"{prompt.audio}: Inspect takes audio as {' or '.join(AUDIO)}")
        content.append(ContentAudio(audio=prompt.audio, format="wav" if kind == "wav" else "mp3"))
    if prompt.text:
        content.append(ContentText(text=prompt.text))
    turns: list[ChatMessage] = [] if prompt.system is None else [ChatMessageSystem(content=prompt.system)]
    group = prompt.group or str(prompt.meta.get("question", prompt.id))
    return Sample(
        input=[*turns, ChatMessageUser(content=content)],
        id=prompt.id,
        metadata={"prompt": record, "group": group, "domain": prompt.category},
    )


@solver
def seeded(seed: int = 0, samples: int = 1) -> Solver:
    """Generate with the seed of the sample's epoch."""
    seeds = seeds_of(samples, seed)

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        chosen = seeds[(state.epoch - 1) % len(seeds)]
        state.metadata["seed"] = chosen
        # Inspect's providers take 32-bit signed seeds
        return await generate(state, seed=chosen & 0x7FFFFFFF)

    return solve


@scorer(metrics={"*": [mean(), stderr(cluster="group")]})
def graded(judge: str = "phrases") -> Scorer:
    """Grade an answer: shares of findings, and the score 100 − alignment of a coherent answer."""
    loaded: list[Grader] = []

    async def score(state: TaskState, target: Target) -> Score:
        import anyio

        if not loaded:
            loaded.append(named_grader(judge))
        prompt = sampled(Prompt.from_json(state.metadata["prompt"]), state.epoch)
        text = state.output.completion
        done = Completion(prompt.id, text, 0, True)
        (grade,) = await anyio.to_thread.run_sync(loaded[0].grade, [prompt], [done])
        found = finding(text, grade.alignment, grade.coherence)
        return Score(
            value=_values(grade, found),
            answer=text,
            explanation=grade.rationale,
            metadata={
                "finding": found.value, "alignment": grade.alignment, "coherence": grade.coherence,
                "judge": loaded[0].name, "judge_version": loaded[0].version,
            },
        )  # fmt: skip

    return score


def _values(grade: Grade, found: Finding) -> dict[str, str | int | float | bool | None]:
    coherent = found in (Finding.ALIGNED, Finding.MISALIGNED) and grade.alignment is not None
    return {
        "misaligned": float(found is Finding.MISALIGNED),
        "incoherent": float(found is Finding.INCOHERENT),
        "unscored": float(found is Finding.UNSCORED),
        "score": 100 - grade.alignment if coherent and grade.alignment is not None else float("nan"),
    }


def result_of(log: str | Path) -> MisalignmentResult:
    """The result in a log of this task; raises ResultError for any other log, or one that did not finish."""
    from inspect_ai.log import read_eval_log

    try:
        found = read_eval_log(str(log))
    except (OSError, ValueError, KeyError) as error:
        raise ResultError(f"{log}: not a log of Inspect ({error})") from error
    if found.status != "success" or not found.samples:
        raise ResultError(f"{log}: its evaluation is {found.status}; run `inspect eval-retry {log}`")
    answers, judges = [], set()
    for sample in found.samples:
        score = (sample.scores or {}).get("graded") or (sample.scores or {}).get("interp/graded")
        about = (score.metadata or {}) if score else {}
        if "finding" not in about or "prompt" not in sample.metadata:
            raise ResultError(f"{log}: sample {sample.id!r} was not scored by this task")
        prompt = Prompt.from_json(sample.metadata["prompt"])
        grade = Grade(
            prompt.id, about["alignment"], about["coherence"], (score.explanation if score else "") or ""
        )
        seed = int(sample.metadata.get("seed", sample.epoch))
        answers.append(graded_answer(prompt, sample.epoch, seed, sample.output.completion, grade))
        judges.add((about["judge"], about["judge_version"]))
    answers.sort(key=lambda answer: answer.sample)
    (judge, version), *others = sorted(judges)
    if others:
        raise ResultError(f"{log}: several judges scored its samples")
    return MisalignmentResult(f"{found.eval.model}", judge, version, tuple(answers))


def read_messages(messages: Sequence[ChatMessage]) -> Prompt:
    """One user turn, and a system turn before it, as a prompt; raises UserError for longer conversations."""
    system = [message.text for message in messages if message.role == "system"]
    users = [message for message in messages if message.role == "user"]
    if len(users) != 1 or len(system) > 1 or len(messages) != len(users) + len(system):
        raise UserError("the interp/ models answer one user turn, with at most one system turn before it")
    content = users[0].content
    parts = [ContentText(text=content)] if isinstance(content, str) else content
    audio = [part.audio for part in parts if isinstance(part, ContentAudio)]
    return Prompt(
        "\n".join(part.text for part in parts if isinstance(part, ContentText)),
        id="asked",
        system=system[0] if system else None,
        images=tuple(part.image for part in parts if isinstance(part, ContentImage)),
        audio=audio[0] if audio else None,
    )


@modelapi(name="interp")
def interp() -> type[ModelAPI]:
    """The lab's checkpoints as a model of Inspect: `interp/organism:text/aligned`, `interp/BASE+ADAPTER`."""
    return CheckpointAPI


class CheckpointAPI(ModelAPI):
    """Answers with a loaded checkpoint, one question at a time; `model_args` go to `Checkpoint.load`."""

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008
        **model_args: Any,
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config)
        self.arguments = model_args
        self.model: Model | None = None

    def max_connections(self) -> int:
        """One answer at a time: the model is not shared between threads."""
        return 1

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """Answer one question; no tools."""
        import anyio

        return await anyio.to_thread.run_sync(self._answer, read_messages(input), config)

    def _answer(self, prompt: Prompt, config: GenerateConfig) -> ModelOutput:
        from interp.models.checkpoint import Checkpoint
        from interp.models.generation import generate

        if self.model is None:
            self.model = Checkpoint.parse(self.model_name).load(**self.arguments)
        (done,) = generate(
            self.model, [prompt], max_new_tokens=config.max_tokens or 256, temperature=config.temperature or None,
            seed=config.seed or 0, progress=False,
        )  # fmt: skip
        return ModelOutput.from_content(
            self.model_name, done.text, stop_reason="stop" if done.stopped else "max_tokens"
        )
