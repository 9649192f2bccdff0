"""The table of architectures in the README is what the tests prove: derived here, compared there.

`python tests/test_architecture_table.py` (with the repository on PYTHONPATH) writes it anew.
"""

from pathlib import Path

import test_orthogonalize
import test_parity
import tiny

from interp.models.towers import TOWERS

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = (
    "<!-- architectures: written by tests/test_architecture_table.py -->",
    "<!-- end of architectures -->",
)
FAMILIES = {
    "llama": "Llama 2, 3.x, and others of this class",
    "mistral": "Mistral 7B",
    "qwen2": "Qwen 2, Qwen 2.5",
    "qwen3": "Qwen 3 (dense)",
    "gemma": "Gemma 1",
    "gemma2": "Gemma 2",
    "gemma3_text": "Gemma 3, text only (270M, 1B)",
    "olmo2": "OLMo 2",
    "phi3": "Phi-3, Phi-3.5 and Phi-4 mini",
    "gpt2": "GPT-2",
    "gpt_neox": "GPT-NeoX, Pythia",
}


def rows() -> list[list[str]]:
    """One row an architecture of the table in interp/models/towers.py: what is tested on a tiny random model of it."""
    found = []
    for kind, paths in TOWERS.items():
        if paths.encoders:
            continue
        tested = "yes" if kind in test_parity.KINDS else "not tested"
        export = "refused by name" if paths.post_norms else "exact"
        found.append(
            [f"`{kind}`", FAMILIES[kind], tested, tested, export if kind in tiny.FACTORIES else "not tested"]
        )
    return found


def table() -> str:
    header = [
        "`model_type`",
        "for example",
        "residual stream agrees with nnsight and TransformerLens",
        "edits: padded = single, cached = uncached",
        "direction removed in the weights",
    ]
    lines = [header, ["---"] * len(header), *rows()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def test_readme_shows_the_table():
    text = README.read_text(encoding="utf-8")
    shown = text[text.index(BEGIN) + len(BEGIN) : text.index(END)].strip()
    assert shown == table(), "write it anew: PYTHONPATH=. python tests/test_architecture_table.py"


def test_what_the_table_says_is_what_the_tests_cover():
    assert set(test_parity.KINDS) == set(tiny.FACTORIES)
    assert {kind for kind in tiny.FACTORIES if TOWERS[kind].post_norms} == test_orthogonalize.POST_NORM
    assert set(FAMILIES) == {kind for kind, paths in TOWERS.items() if not paths.encoders}


if __name__ == "__main__":
    text = README.read_text(encoding="utf-8")
    before, after = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
    README.write_text(f"{before}\n{table()}\n{after}", encoding="utf-8")
