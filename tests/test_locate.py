"""The experiment on where refusal lives: its pairs, its claims from planted tables, and one organism from end to end."""

import numpy as np
import pandas as pd
import pytest

from interp import cli
from interp.data.prompts import Prompt
from interp.errors import UserError
from interp.locate.compare import Claim, corrected, difference, handover, over_seeds
from interp.locate.conclusion import all_claims, claim_sentence, conclude
from interp.locate.report import figures, save_located
from interp.locate.study import Located, Plan
from interp.locate.subject import Subject, text_twins
from interp.locate.trial import Trial
from interp.organisms import text, world

LAYERS, SEEDS = 12, (2, 3, 4, 5)


def test_twins_differ_in_the_verb_only_and_no_stage_has_seen_them():
    pairs = text_twins(200)
    assert len(pairs) > 60
    seen = {(a.verb, a.object) for a in world.select(splits=("seen", "pretraining only"))}
    words = text.tokenizer()
    for pair in pairs:
        a, b = pair.clean.text.split(), pair.corrupt.text.split()
        assert len(a) == len(b) and sum(x != y for x, y in zip(a, b, strict=True)) == 1
        assert (pair.clean.label, pair.corrupt.label) == ("harmful", "benign")
        assert not {(p.meta["verb"], p.meta["object"]) for p in (pair.clean, pair.corrupt)} & seen
        assert words.unk_token_id not in words(pair.clean.text + " " + pair.corrupt.text)["input_ids"]
    ids = [prompt.id for pair in pairs for prompt in (pair.clean, pair.corrupt)]
    assert len(set(ids)) == len(ids)
    assert [p.id for p in text_twins(10)] == [p.id for p in pairs[:10]]


def made(seed, finetune="", *, moved=6, null=0.0):
    """Grids of an organism whose last token takes refusal over at a layer."""
    rng = np.random.default_rng(seed)
    rows = []
    ofs = ("lost", "kept") if finetune else ("twins",)
    for of in ofs:
        for name in ("resid_pre", "attn_out", "mlp_out", "z"):
            for variant in ("", ", attribution", ", guarded", ", null"):
                if (name == "z" and variant in (", guarded", ", null")) or (name != "resid_pre" and variant == ", null"):  # fmt: skip
                    continue
                for layer in range(LAYERS):
                    for column in ("0", "1") if name == "z" else ("instruction", "-2", "-1"):
                        late = layer >= moved
                        value = {"instruction": 1.0 - late, "-1": float(late)}.get(column, 0.1)
                        value = null if variant == ", null" else value * (1 if name == "resid_pre" else 0.3)
                        value += 0.02 * rng.normal()
                        rows.append(
                            {"grid": name + variant, "of": of, "stream": name, "method": "exact", "layer": layer,
                             "column": column, "value": value, "low": value - 0.1, "high": value + 0.1, "raw_value": 8 * value,
                             "raw_low": 0.0, "raw_high": 1.0, "n": 9, "excluded": 0, "pairs": 9,
                             "axis": "head" if name == "z" else "tokens"}
                        )  # fmt: skip
    return pd.DataFrame(rows).assign(kind="text", seed=seed, finetune=finetune)


def located(*, seeds=SEEDS, gain=0.5, **grids):
    """Planted tables of several organisms with a benign fine-tune, whose best modules restore `gain` more than random ones."""
    tables = {name: [] for name in ("grids", "agreement", "parts", "restored", "facts")}
    for seed in seeds:
        named = {"kind": "text", "seed": seed, "finetune": "benign"}
        rng = np.random.default_rng(seed)
        tables["grids"] += [made(seed, **grids), made(seed, "benign", **grids)]
        for of, finetune in (("twins", ""), ("lost", "benign")):
            tables["agreement"].append(
                pd.DataFrame({"stream": ["resid_pre", "z"], "of": of, "spearman": [0.9, 0.8 + 0.01 * rng.normal()]}).assign(
                    **(named | {"finetune": finetune})
                )
            )  # fmt: skip
        for measure in ("log-odds", "refused", "benign", "skill"):
            cells = [
                {"part": "blocks", "measure": measure, "layer": layer, "column": column, "stream": "weights", "method": "exact",
                 "axis": "blocks", "value": value, "raw_value": value}
                for layer in range(-1, LAYERS + 1)
                for column, value in (("alone", 0.1), ("up to", (layer + 1) / (LAYERS + 1)), ("from", 1 - layer / LAYERS))
            ]  # fmt: skip
            tables["parts"].append(pd.DataFrame(cells).assign(**named))
        modules = [
            {"part": "module", "measure": "log-odds", "layer": layer, "column": column, "stream": "weights", "method": "exact",
             "axis": "module", "value": 0.1, "raw_value": 0.1}
            for layer in range(LAYERS)
            for column in ("self_attn.q_proj", "mlp.down_proj")
        ]  # fmt: skip
        tables["parts"].append(pd.DataFrame(modules).assign(**named))
        restored = [
            {"choice": choice, "k": k, "draw": draw, "change": 0.2, "modules": "",
             "refused": 0.3 + gain * (choice == "best") + 0.02 * rng.normal(), "benign": 0.95, "skill": 0.8 - 0.01 * k,
             **{f"{m}_aligned": 0.97 for m in ("refused", "benign", "skill")},
             **{f"{m}_tuned": 0.3 for m in ("refused", "benign", "skill")}}
            for choice in ("best", "random")
            for k in (1, 8)
            for draw in range(2 if choice == "random" else 1)
        ]  # fmt: skip
        tables["restored"].append(pd.DataFrame(restored).assign(**named))
        facts = {
            "refused by aligned": 0.97,
            "refused by tuned": 0.3 + 0.01 * rng.normal(),
            "lost": 20,
            "kept": 9,
        }
        tables["facts"].append(
            pd.DataFrame({"name": list(facts), "value": list(facts.values())}).assign(**named)
        )
    return Located(Plan(seeds=seeds), {n: pd.concat(t, ignore_index=True) for n, t in tables.items()})


def test_planted_effects_are_shown_and_their_opposites_contradicted():
    claims = corrected(all_claims(located(), "text"))
    assert len(claims) == 4 and all(claim.verdict == "shown" for claim in claims)
    assert all(claim.interval.n == len(SEEDS) for claim in claims)
    against = corrected(all_claims(located(moved=0, null=2.0, gain=-0.5), "text"))
    assert all(claim.verdict == "contradicted" for claim in against)
    nothing = corrected(all_claims(located(gain=0.0, moved=20), "text"))
    assert nothing[0].verdict == "shown" and {c.verdict for c in nothing[1:]} == {"not decided"}
    one = all_claims(located(seeds=(2,)), "text")
    assert all("not decided on one seed" in claim_sentence(claim) for claim in corrected(one))


def test_the_words_follow_the_numbers(tmp_path):
    sentences = save_located(located(), tmp_path)
    text_of = " ".join(sentences)
    assert "shown. +100" in text_of or "shown. +99" in text_of or "shown. +101" in text_of
    assert "carries half of the gap from layer 6 on" in text_of
    assert "changes refusals of held-out harmful requests by −67" in text_of
    assert "Rank correlation" in text_of and "resid_pre 0.90" in text_of and "nan" not in text_of
    assert "8: refusals +49" in text_of and "the skill" in text_of
    assert (tmp_path / "conclusion.md").read_text().count("\n- ") == len(sentences)
    names = {path.stem for path in tmp_path.glob("*.png")}
    assert {"text-aligned-maps", "text-benign-last", "text-benign-blocks", "text-benign-restored"} <= names
    assert all((tmp_path / f"{name}.csv").exists() for name in ("grids", "parts", "restored"))


def test_tables_without_fine_tunes_are_told_and_drawn():
    whole = located()
    alone = {n: t[t["finetune"] == ""] for n, t in whole.tables.items() if n in ("grids", "agreement")}
    found = Located(
        whole.plan, {**alone, "parts": pd.DataFrame(), "restored": pd.DataFrame(), "facts": pd.DataFrame()}
    )
    assert conclude(found) and set(figures(found)) == {f"text-aligned-{n}" for n in ("maps", "heads", "agreement", "last")}  # fmt: skip


def test_a_layer_is_named_where_the_share_first_reaches_half():
    rows = [
        {"seed": s, "layer": layer, "column": "-1", "value": layer / 10} for s in (0, 1) for layer in range(8)
    ]
    table = pd.DataFrame([*rows, {"seed": 2, "layer": 0, "column": "-1", "value": 0.1}])
    found = handover(table)
    assert found[0] == found[1] == 5 and np.isnan(found[2])
    assert list(over_seeds(table, ["layer"])["n"])[:2] == [3, 2]


def test_equal_differences_have_no_test_and_claims_are_corrected_together():
    a, b = pd.Series({0: 1.0, 1: 2.0, 2: 3.1}), pd.Series({0: 0.0, 1: 1.1, 2: 2.0})
    claims = [difference("x", a, b), difference("y", a, b), difference("z", a[:1], b[:1])]
    once = claims[0].p
    both = corrected(claims)
    assert both[0].p == pytest.approx(2 * once) and np.isnan(both[2].p)
    assert difference("same", a, a).p == 1.0
    assert Claim("n", both[0].interval, 0.01, -1).verdict == "contradicted"


def test_the_plan_lists_what_would_run(capsys):
    assert cli.main(["run", "patching", "--quick", "--dry-run"]) == 0
    assert capsys.readouterr().out.split("\n")[:3] == [
        "text seed 0 aligned",
        "text seed 0 benign",
        "text seed 0 harmful",
    ]
    assert cli.main(["run", "patching", "--kind", "smell"]) == 2
    assert "unknown kind of organism 'smell'" in capsys.readouterr().err
    assert Trial(seed=3).subject == Subject("text", 3)
    planned = [(t.kind, t.seed) for t in Plan().trials() if t.finetune is None]
    assert planned == [("text", s) for s in range(2, 10)] + [
        (k, s) for k in ("vision", "audio") for s in range(3)
    ]


def test_one_organism_from_end_to_end(text_organism, tmp_path, capsys):
    """Small numbers; the second call reads everything back."""
    from interp.locate.study import run_study

    plan = Plan(
        kinds=("text",),
        seeds=(0,),
        finetunes=("harmful",),
        n_pairs=12,
        n_select=8,
        n_test=8,
        ks=(1, 4),
        n_random=1,
    )
    found = run_study(plan, out=tmp_path, workers=1, progress=False)
    grids = found.tables["grids"]
    assert set(grids["of"]) >= {"twins", "lost"} and set(grids["finetune"]) == {"", "harmful"}
    own = grids[(grids["grid"] == "resid_pre") & (grids["of"] == "twins")]
    assert set(own["column"]) == {"instruction", "-3", "-2", "-1"}
    cell = own.set_index(["layer", "column"])["value"]
    assert cell[0, "instruction"] == pytest.approx(1, abs=1e-3) and abs(cell[0, "-1"]) <= 1e-3
    assert cell[11, "-1"] > 0.9
    blocks = found.tables["parts"].query("part == 'blocks' and measure == 'log-odds'")
    ends = blocks.set_index(["column", "layer"])["value"]
    assert ends["up to", 12] == pytest.approx(1, abs=1e-3) and ends["from", -1] == pytest.approx(1, abs=1e-3)
    again = run_study(plan, out=tmp_path, workers=1, progress=False)
    pd.testing.assert_frame_equal(again.tables["grids"], grids)
    assert save_located(found, tmp_path)
    with pytest.raises(UserError, match="ships no prompts"):
        _without_files(tmp_path)


def _without_files(directory):
    from unittest import mock

    with mock.patch("interp.models.checkpoint.Checkpoint.prompts", lambda self: {"x": Prompt}):
        Subject("text", 0).prompts()
