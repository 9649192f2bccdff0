"""The table of architectures in docs/MULTIMODAL.md is what the tests prove: derived here, compared there.

`PYTHONPATH=.:tests python tests/test_multimodal_table.py` writes it anew.
"""

from pathlib import Path

from test_multimodal import BRIDGED, RECIPES
from tower_facts import FACTS

from interp.models.towers import TOWERS

PAGE = Path(__file__).parents[1] / "docs" / "MULTIMODAL.md"
BEGIN, END = (
    "<!-- architectures: written by tests/test_multimodal_table.py -->",
    "<!-- end of architectures -->",
)
FAMILIES = {
    "gemma3": "Gemma 3 (4B and larger)",
    "llava": "LLaVA 1.5",
    "llava_next": "LLaVA-NeXT (1.6)",
    "llava_onevision": "LLaVA-OneVision",
    "qwen2_vl": "Qwen2-VL",
    "qwen2_5_vl": "Qwen2.5-VL",
    "qwen3_vl": "Qwen3-VL (dense)",
    "paligemma": "PaliGemma",
    "idefics3": "Idefics3",
    "smolvlm": "SmolVLM",
    "qwen2_audio": "Qwen2-Audio",
    "qwen2_5_omni": "Qwen2.5-Omni thinker, sound",
    "qwen2_5_omni/image": "Qwen2.5-Omni thinker, images",
    "audioflamingo3": "Audio Flamingo 3",
    "voxtral": "Voxtral",
    "phi4_multimodal": "Phi-4-multimodal, sound",
    "phi4_multimodal/image": "Phi-4-multimodal, images",
    "granite_speech": "Granite-Speech",
}


def table() -> str:
    header = ["architecture", "`model_type`", "model", "TransformerLens bridge", "processor", "limits"]
    lines = [header, ["---"] * len(header)]
    for kind, name in FAMILIES.items():
        facts = FACTS[kind]
        reason = facts.limits.get("processor")
        own = RECIPES[kind].processor is not None
        partial = own and RECIPES[kind].encode is not None
        model = "proven" if own and not partial else "proven with generated features"
        processor = "its own" if reason is None else f"not here: {reason}"
        limits = "; ".join(f"{what}: {why}" for what, why in facts.limits.items() if what != "processor")
        bridge = "agrees" if kind in BRIDGED else "no adapter here"
        lines.append([name, f"`{facts.model_type}`", model, bridge, processor, limits or "–"])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def test_the_page_shows_the_table():
    text = PAGE.read_text(encoding="utf-8")
    shown = text[text.index(BEGIN) + len(BEGIN) : text.index(END)].strip()
    assert shown == table(), "write it anew: PYTHONPATH=.:tests python tests/test_multimodal_table.py"


def test_every_architecture_is_in_it():
    assert set(FAMILIES) == set(RECIPES) == set(FACTS)
    assert {FACTS[kind].model_type for kind in FAMILIES} == {
        k for k, paths in TOWERS.items() if paths.encoders
    }


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    before, after = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
    PAGE.write_text(f"{before}\n{table()}\n{after}", encoding="utf-8")
