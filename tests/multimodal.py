"""Every tiny model that sees or hears as a `Model`, and prompts for it: of different lengths, about images or clips of different sizes."""

from importlib.util import find_spec

from tiny_audio import AUDIO
from tiny_multimodal import RATE, Row, build, clip, picture
from tiny_vision import VISION
from tower_facts import FACTS

from interp.data.prompts import Prompt
from interp.models.model import Model
from interp.models.tokens import Tokens

RECIPES = {**VISION, **AUDIO}
KINDS = {kind: FACTS[kind] for kind in RECIPES}
TOWER = {"image": "vision", "audio": "audio"}
NEEDED = {"voxtral": "mistral_common", "granite_speech": "torchaudio", "phi4_multimodal/image": "torchvision"}


def made(kind: str) -> Model:
    """The tiny model; where its processor cannot exist here, prompts become generated features."""
    found = build(kind, RECIPES[kind])
    model = Model.from_module(found.module, found.processor or found.tokenizer, name=kind)
    if found.processor is None:
        whole = model.token_ids

        def token_ids(prompt: Prompt) -> Tokens:
            if prompt.audio is None and not prompt.images:
                return whole(prompt)
            features = RECIPES[kind].encode(found, Row(prompt.text, prompt.images or (prompt.audio[0],)))
            ids = tuple(features.pop("input_ids")[0].tolist())
            return Tokens(ids, {k: v for k, v in features.items() if k != "attention_mask"})

        model.token_ids = token_ids
    return model


def mixed(kind: str) -> bool:
    return "mixed sizes" in KINDS[kind].limits


def asked(kind: str, n: int = 4, *, text_too: bool = True) -> list[Prompt]:
    """Prompts of different lengths about images or clips of different sizes, the last about nothing."""
    found = []
    for i in range(n):
        words = " ".join(f"w{(7 * i + j) % 60}" for j in range(2 + 3 * i % 7))
        if KINDS[kind].modality == "image":
            side = 28 if mixed(kind) else 28 * (1 + i % 2)
            media = {"images": (picture(28, side, seed=i),)}
        else:
            seconds = 1.0 if mixed(kind) else (1.0, 0.6, 1.4, 0.8)[i % 4]
            media = {"audio": (clip(seconds, seed=i), RATE)}
        found.append(Prompt(text=words, id=f"m{i}", **media))
    if text_too:
        found.append(Prompt(text="w1 w2 w3 w4", id="text"))
    return found


def why_no_processor(kind: str) -> str | None:
    """Why the model of this kind has no processor of its own here; None where it has."""
    if RECIPES[kind].processor is not None:
        return None
    package = NEEDED[kind]
    if find_spec(package) is None:
        return f"its processor needs {package}, which is not installed"
    return f"{package} is installed, but this kind's recipe does not build its processor yet"
