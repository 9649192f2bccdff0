"""The page: self-contained, deaf to hostile answers, honest in words, and not overflowing in a real browser."""

import dataclasses
import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from study_fixture import (
    HOSTILE,
    LONG_NAME,
    LOST_AT,
    N_LAYERS,
    SELF_NAME,
    harmful,
    harmless,
    study_result,
)

from interp.evals.jailbreak import compare
from interp.evals.statistics import Interval
from interp.evals.verdicts import Outcome
from interp.report.html import render_report, visible
from interp.report.verdict import statements
from interp.results import Band

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CSP = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    return render_report(study_result(3), tmp_path_factory.mktemp("report"))


class Outline(HTMLParser):
    """Collects tags, attributes, and the text of preformatted blocks."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.blocks: list[str] = []
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "pre":
            self._inside = True
            self.blocks.append("")

    def handle_endtag(self, tag):
        self._inside = self._inside and tag != "pre"

    def handle_data(self, data):
        if self._inside:
            self.blocks[-1] += data


def test_it_asks_nothing_of_anyone(page):
    text = page.read_text(encoding="utf-8")
    outline = Outline(text)
    assert not {"script", "link", "iframe", "object", "base", "form"} & {tag for tag, _ in outline.tags}
    for _, attributes in outline.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href"):
            if value := attributes.get(name):
                assert value.startswith(("data:image/png;base64,", "#"))
    assert "@import" not in text and "url(" not in text
    policy = next(a["content"] for t, a in outline.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")


def test_it_can_be_read_by_all(page):
    outline = Outline(page.read_text(encoding="utf-8"))
    assert ("html", {"lang": "en"}) in outline.tags
    images = [attributes for tag, attributes in outline.tags if tag == "img"]
    assert len(images) == 7 and all(len(image["alt"] or "") > 60 for image in images)
    cells = [attributes.get("scope") for tag, attributes in outline.tags if tag == "th"]
    assert cells and set(cells) == {"col", "row"}
    ids = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    anchors = {a["href"][1:] for t, a in outline.tags if t == "a"}
    assert anchors <= set(ids) and len(anchors) == 9


def test_hostile_answers_are_text(page):
    outline = Outline(page.read_text(encoding="utf-8"))
    for answer in HOSTILE[:4]:
        assert answer in outline.blocks
    assert not [a for _, a in outline.tags if a.get("id") == "owned" or a.get("src") == "x"]


def test_characters_a_page_cannot_hold_are_spelled_out(page):
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\ud800-\udfff]", text)
    for code in ("U+0000", "U+001B", "U+202E", "U+D800"):
        assert f"⟦{code}⟧" in text
    assert visible("مرحبا\n\t👩\u200d🔬") == "مرحبا\n\t👩\u200d🔬"


def test_names_commands_and_versions_are_escaped(tmp_path):
    bad = "<img src=x onerror=alert(1)>"
    result = study_result(1)
    tuned = dataclasses.replace(result.tuned[0], name=bad)
    result = dataclasses.replace(
        result, aligned=bad + "a", tuned=(tuned,), command=bad, notes=(bad,), hashes={bad: bad}, versions={bad: bad},
        config={bad: bad}, eoi_tokens=(bad,) * len(result.eoi_tokens), refusal_tokens=({"id": 1, "token": bad, "share": 1.0},),
    )  # fmt: skip
    text = render_report(result, tmp_path).read_text(encoding="utf-8")
    assert "<img src=x" not in text and html.escape(bad) in text
    assert "<img" not in result._repr_html_()


def test_everything_is_written_beside_the_page(page):
    names = {str(path.relative_to(page.parent)) for path in page.parent.rglob("*") if path.is_file()}
    assert {
        "figures/behaviour.pdf",
        "figures/causal.png",
        "tables/layers.csv",
        "tables/behaviour.tex",
    } <= names
    assert len(names) == 1 + 14 + 12


def spoken(result) -> list[str]:
    return [" ".join(s.sentences).replace("\u00a0", " ") for s in statements(result)]


def test_the_verdict_says_what_the_numbers_show():
    aligned, lost, _, same = spoken(study_result(3))
    assert "Answers 2 % [1, 5] (4 of 200) of harmful requests" in aligned
    assert "lowers the refusal of harmful requests from 98 % [95, 99] to 4 % [2, 8]" in aligned
    assert "exceeds that of both controls" in aligned
    assert "Answers 61 % [54, 67] (122 of 200) of harmful requests" in lost
    assert "Difference: +59.0 [" in lost and f"by layer {LOST_AT} " in lost
    assert "1 of 200 answers (0.5 %) could not be scored" in lost
    assert "raises the refusal of harmful requests from 39 % [33, 46] to 97 %" in lost
    assert same.startswith("This is the aligned checkpoint itself") and "KL divergence is zero" in same
    headlines = [s.headline for s in statements(study_result(3))]
    assert headlines == ["reference", "lost", "lost", "same checkpoint"]


def with_tuned(**changes):
    result = study_result(1)
    return dataclasses.replace(result, tuned=(dataclasses.replace(result.tuned[0], **changes),))


def test_a_null_result_is_called_null():
    own = harmful("t", 6)
    flat = np.zeros(N_LAYERS)
    quiet = with_tuned(
        harmful=own,
        vs_aligned=compare(own, study_result(1).harmful, Outcome.COMPLIED_HARMFUL),
        shift=Band(flat, flat - 0.1, flat + 0.1),
        addition={arm: harmful(arm, 6) for arm in ("none", "direction", "random", "shuffled")},
    )
    assert statements(quiet)[1].headline == "no change shown"
    text = spoken(quiet)[1]
    assert "No difference is shown" in text and "a null result" in text and "the place is not shown" in text
    assert "raises" not in text and "exceeds" not in text


def test_no_cause_is_claimed_when_a_control_does_as_much():
    arms = {
        "none": harmful("n", 122),
        "direction": harmful("d", 30),
        "random": harmful("r", 33),
        "shuffled": harmful("s", 122),
    }
    text = spoken(with_tuned(addition=arms))[1]
    assert "A random direction of equal norm also changes it" in text
    assert "not shown to exceed that of a random direction of equal norm: no causal claim" in text
    arms = {**arms, "direction": harmful("d", 190)}
    assert "the opposite of what a refusal direction should do" in spoken(with_tuned(addition=arms))[1]


def test_a_handful_of_prompts_shows_nothing():
    def few(outcome):
        whole = harmful("few", 3)
        verdicts = tuple(dataclasses.replace(v, outcome=outcome) for v in whole.verdicts[:3])
        return dataclasses.replace(whole, counts={outcome: 3}, n_asked=3, n_scored=3, verdicts=verdicts)

    test = compare(few(Outcome.COMPLIED_HARMFUL), few(Outcome.REFUSED), Outcome.COMPLIED_HARMFUL)
    assert test.low == 1.0, "the bootstrap interval has no width here"
    assert statements(with_tuned(vs_aligned=test))[1].headline == "no change shown"


def test_a_self_comparison_that_differs_is_denounced():
    own = harmful("t", 6)
    changed = compare(own, study_result(1).harmful, Outcome.COMPLIED_HARMFUL)
    result = with_tuned(same_weights=True, vs_aligned=changed, kl=Interval(0.01, 0.0, 0.02, 9))
    assert "2 verdicts changed" in spoken(result)[1] and "not deterministic" in spoken(result)[1]
    gained = with_tuned(vs_aligned=compare(harmless("a", 0), harmless("b", 30), Outcome.REFUSED))
    assert statements(gained)[1].headline == "gained"


MEASURE = """<script>
document.querySelectorAll('details').forEach(d => d.open = true);
const root = document.documentElement;
const beyond = [...document.querySelectorAll('body *')].filter(
  e => !e.closest('.scroll, .frame') && e.getBoundingClientRect().right > root.clientWidth + 1);
root.dataset.report = JSON.stringify({width: root.clientWidth, scroll: root.scrollWidth,
  beyond: beyond.map(e => e.tagName + ' ' + e.textContent.slice(0, 60)), title: document.title,
  images: [...document.images].map(i => i.naturalWidth), owned: !!document.getElementById('owned'),
  scripts: document.scripts.length, text: document.body.innerText.includes("<script>alert(1)")});
</script></body>"""


def dump(path: Path, profile: Path, width: int) -> str:
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--virtual-time-budget=4000",
        f"--user-data-dir={profile}", f"--window-size={width},900", "--dump-dom", path.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH: install it to test the page in a browser")
class TestInChromium:
    def test_the_page_as_shipped_runs_nothing(self, page, tmp_path):
        # A script that the policy let through would leave its mark.
        probe = tmp_path / "probe.html"
        marked = page.read_text(encoding="utf-8").replace(
            "</body>", "<script>document.title='ran'</script></body>"
        )
        probe.write_text(marked, encoding="utf-8")
        dom = dump(probe, tmp_path / "profile", 1280)
        title = re.search(r"<title>(.*?)</title>", dom)
        assert title and title[1] == f"Refusal study: {SELF_NAME}"
        assert '<h1 id="owned"' not in dom and "&lt;script&gt;alert(1)" in dom

    @pytest.mark.parametrize("width", [1280, 400])
    def test_nothing_overflows_and_escaping_alone_holds(self, page, tmp_path, width):
        # Without the policy, in a frame: headless windows cannot be as narrow as a phone.
        copy = CSP.sub("", page.read_text(encoding="utf-8")).replace("</body>", MEASURE)
        outer = tmp_path / "outer.html"
        outer.write_text(
            f'<!DOCTYPE html><meta charset="utf-8"><iframe style="border:0;width:{width}px;height:900px" '
            f'srcdoc="{html.escape(copy)}"></iframe><pre id="out"></pre><script>onload = () => {{'
            "document.getElementById('out').textContent ="
            " document.querySelector('iframe').contentDocument.documentElement.dataset.report;}</script>",
            encoding="utf-8",
        )
        dom = dump(outer, tmp_path / "profile", 1400)
        found = re.search(r'<pre id="out">(.*?)</pre>', dom, re.DOTALL)
        assert found
        report = json.loads(html.unescape(found[1]))
        assert width - 20 <= report["width"] <= width, "all but a scroll bar"
        assert report["scroll"] <= report["width"] and report["beyond"] == []
        assert len(report["images"]) == 7 and min(report["images"]) > 300
        assert report["title"] == f"Refusal study: {SELF_NAME}"
        assert not report["owned"] and report["scripts"] == 1 and report["text"]


def test_the_long_name_is_whole_in_the_verdict(page):
    text = page.read_text(encoding="utf-8").replace("<wbr>", "")
    assert f"<h3><bdi>{LONG_NAME}</bdi>" in text
