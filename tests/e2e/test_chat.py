"""The chat in a real JupyterLab, with the embedded model: tokens come as they are made, from the live weights too; a
stop is heard at once; each token says how likely it was; a blind vote is kept; by mouse and by keyboard."""

from __future__ import annotations

import json
import re

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

ROWS = """import nbtune
from nbtune.widgets import chat
rows = [{"prompt": f"Who are you, {k}?", "completion": "Ahoy! I am Captain Tune."} for k in range(40)]
"""
TRAIN = ROWS + 'run = nbtune.finetune(data="rows", rows=globals(), steps=30, learning_rate=3e-3, name="talk").wait()\n'
ENDLESS = "run._model.loaded().model.generation_config.eos_token_id = None\n"  # its answers end at the limit only
SHOW = "panel = chat(run)\npanel"
HOSTILE = "<img src=x onerror='window.hacked=1'> Who are you?"
PANEL = ".nbt-chatpanel"

# What an answer looked like whenever it changed: [place, pieces, is being written].
WATCH = """(panel) => {
    const seen = globalThis.grown = [];
    new MutationObserver(() => {
        const turn = [...panel.querySelectorAll(".nbt-turn")].at(-1);
        turn?.querySelectorAll(".nbt-said").forEach((node, place) => {
            seen.push([place, node.querySelectorAll(".nbt-piece").length, node.getAttribute("aria-busy") === "true"]);
        });
    }).observe(panel.querySelector(".nbt-turns"), { childList: true, subtree: true, attributes: true });
}"""
CLOCK = """(panel) => {
    const stop = panel.querySelector(".nbt-btn:not(.nbt-main)");
    stop.addEventListener("click", () => { globalThis.clicked = performance.now(); }, true);
    new MutationObserver(() => { if (stop.hidden) globalThis.stopped = performance.now(); })
        .observe(stop, { attributes: true });
}"""


def ask(panel, words, tokens=12, heat=None):
    panel.get_by_label("Tokens at most").fill(str(tokens))
    if heat is not None:
        panel.get_by_label("Temperature").fill(str(heat))
    panel.get_by_label("Ask both…").fill(words)
    panel.get_by_label("Ask both…").press("Enter")


def answered(panel, turns=1):
    expect(panel.locator(".nbt-turn")).to_have_count(turns)
    expect(panel.get_by_role("button", name="Ask")).to_be_enabled()


@pytest.mark.slow
def test_both_answer_token_by_token_and_a_blind_vote_is_kept(notebook, lab):
    page = notebook([TRAIN + SHOW], width=900)
    page.run(0)
    panel = page.page.locator(PANEL)
    panel.wait_for()
    panel.evaluate(WATCH)
    ask(panel, HOSTILE, tokens=24)
    answered(panel)
    assert panel.locator("img").count() == 0
    assert panel.locator(".nbt-answer .nbt-bad").count() == 0
    for place in (0, 1):  # each grew before it was whole
        whole = panel.locator(".nbt-said").nth(place).locator(".nbt-piece").count()
        growing = [n for at, n, busy in page.page.evaluate("() => grown") if at == place and busy]
        assert whole > 1
        assert any(0 < n < whole for n in growing), growing

    panel.get_by_label("Blind vote").check()
    ask(panel, "And where do you live?")
    panel.get_by_role("button", name="A", exact=True).wait_for()
    panel.locator(".nbt-turn").nth(1).locator(".nbt-piece").first.hover()
    expect(panel.get_by_text("Probabilities are shown after the vote.").first).to_be_visible()
    page.picture("chat-blind", panel)
    panel.get_by_role("button", name="A", exact=True).click()
    panel.get_by_role("button", name="Save 1 vote").click()
    expect(panel.get_by_text("Saved in preferences.jsonl")).to_be_visible()
    row = json.loads((lab.root / "preferences.jsonl").read_text(encoding="utf-8"))
    assert row["prompt"][-1] == {"role": "user", "content": "And where do you live?"}
    assert row["chosen"] != row["rejected"]

    # a token by mouse, and all of them by keyboard
    said = panel.locator(".nbt-said").first
    said.locator(".nbt-piece").first.hover()
    told = panel.locator(".nbt-toldtoken [role=status]").first
    expect(told).to_have_text(re.compile(r"\d.% · loss [\d.]+ · token 1 of \d+; instead: .+%"))
    assert panel.locator(".nbt-toldtoken").first.locator(".nbt-chip").count() == 5
    said.focus()
    page.page.keyboard.press("ArrowRight")
    expect(told).to_have_text(re.compile("token 2 of"))
    page.page.keyboard.press("End")
    expect(told).to_have_text(re.compile(r"token (\d+) of \1;"))
    panel.get_by_text("Tokens as a table").first.click()
    rows = panel.locator(".nbt-tokentable").first.locator("tbody tr")
    expect(rows).to_have_count(said.locator(".nbt-piece").count())  # they come with an event of their own
    assert page.looks("chat", PANEL) == []


@pytest.mark.slow
def test_tokens_of_an_answer_are_there_after_a_reload(notebook):
    page = notebook([TRAIN + SHOW], width=900)
    page.run(0)
    panel = page.page.locator(PANEL)
    panel.wait_for()
    ask(panel, "Who are you?")
    answered(panel)
    words = panel.locator(".nbt-said").nth(1).inner_text()
    page.save()
    page.load()
    panel.wait_for()
    said = panel.locator(".nbt-said").nth(1)
    expect(said).to_have_text(re.compile(re.escape(words[:20])))
    assert said.locator(".nbt-piece").count() == 0
    said.focus()
    said.locator(".nbt-piece").first.wait_for()
    page.page.keyboard.press("ArrowRight")
    expect(panel.locator(".nbt-toldtoken [role=status]").nth(1)).to_have_text(re.compile("loss"))


@pytest.mark.slow
def test_a_stop_is_heard_at_once_by_mouse_and_by_escape(notebook):
    page = notebook([TRAIN + ENDLESS + SHOW, "print(panel.turns[-1]['stopped'], panel.busy)"], width=900)
    page.run(0)
    panel = page.page.locator(PANEL)
    panel.wait_for()
    panel.evaluate(CLOCK)
    ask(panel, "Who are you?", tokens=4000)
    panel.locator(".nbt-piece").first.wait_for()
    panel.get_by_role("button", name="Stop").click()
    answered(panel)
    assert panel.locator(".nbt-said").nth(1).inner_text() == "stopped"
    waited = page.page.evaluate("() => stopped - clicked")
    print(f"  stopped after {waited:.0f} ms")
    assert 0 < waited < 2000  # 1 s was promised; the machine is shared
    ask(panel, "Who are you?", tokens=4000)
    panel.locator(".nbt-turn").nth(1).locator(".nbt-piece").first.wait_for()
    page.page.keyboard.press("Escape")
    answered(panel, 2)
    page.run(1)
    assert page.output(1).strip() == "True False"


LIVE = (
    ROWS
    + """run = nbtune.finetune(data="rows", rows=globals(), steps=4000, name="live", batch_size=2, detach=DETACH)
"""
    + SHOW
)


@pytest.mark.parametrize("detach", [False, True], ids=["thread", "process"])
@pytest.mark.slow
def test_the_live_weights_answer_while_it_trains(notebook, detach):
    after = "before = run.step\nrun.stop(wait=True)\nprint(run.state, run.step >= before > 0)"
    page = notebook([LIVE.replace("DETACH", str(detach)), after], width=900)
    page.run(0)
    panel = page.page.locator(PANEL)
    panel.wait_for()
    panel.evaluate(WATCH)
    panel.evaluate(CLOCK)
    ask(panel, "Who are you?", tokens=24)
    answered(panel)
    assert panel.locator(".nbt-answer .nbt-bad").count() == 0
    for place in (0, 1):
        whole = panel.locator(".nbt-said").nth(place).locator(".nbt-piece").count()
        growing = [n for at, n, busy in page.page.evaluate("() => grown") if at == place and busy]
        assert any(0 < n < whole for n in growing), growing
    ask(panel, "Tell me a long story", tokens=4000, heat=2)
    panel.locator(".nbt-turn").nth(1).locator(".nbt-piece").first.wait_for()
    if panel.get_by_role("button", name="Stop").is_visible():  # it may have ended by itself
        panel.get_by_role("button", name="Stop").click()
    answered(panel, 2)
    waited = page.page.evaluate("() => globalThis.clicked ? stopped - clicked : 0")
    print(f"  stopped after {waited:.0f} ms")
    assert 0 <= waited < 2000
    page.run(1)
    assert page.output(1).strip() == "stopped True"


PREFER = """rows = None
votes = nbtune.finetune(data="votes.jsonl", method="dpo", steps=2, name="preferred", eval={"split": 0}).wait()
print(votes.state, votes.history.loss.iloc[0].round(3))"""
TWO = ROWS + (
    'run = nbtune.finetune(data="rows", rows=globals(), steps=30, learning_rate=3e-3, name="talk",\n'
    '                      checkpoint={"every": 15, "keep": 5}).wait()\n'
)


@pytest.mark.slow
def test_two_checkpoints_a_blind_vote_and_a_run_that_learns_from_it_without_a_mouse(notebook, lab):
    page = notebook([TWO + SHOW, PREFER.replace("votes.jsonl", "preferences.jsonl")], width=900)
    (lab.root / "preferences.jsonl").unlink(missing_ok=True)
    page.run(0)
    panel, keys = page.page.locator(PANEL), page.page.keyboard
    panel.wait_for()

    def to(name, at_most=20):
        """Tab until something of that name has the focus."""
        for _ in range(at_most):
            keys.press("Tab")
            here = page.page.evaluate(
                "() => { const n = document.activeElement;"
                " return n.labels?.[0]?.textContent || n.getAttribute('aria-label') || n.textContent }"
            )
            if name == here or (len(name) > 1 and name in here):
                return
        raise AssertionError(f"{name} was not reached; the focus is on {here!r}")

    panel.get_by_label("Who answers first").focus()
    keys.press("ArrowUp")  # the base comes last; before it the checkpoints
    expect(panel.get_by_label("Who answers first")).to_have_value(re.compile("@30$"))
    panel.get_by_label("Who answers first").focus()
    keys.press("ArrowUp")
    expect(panel.get_by_label("Who answers first")).to_have_value(re.compile("@15$"))
    to("Who answers second")
    for ends in ("@15", "@30", ":base"):
        keys.press("ArrowDown")
        expect(panel.get_by_label("Who answers second")).to_have_value(re.compile(f"{ends}$"))
    to("Ask both…")
    to("Temperature")
    keys.press("Control+A")
    keys.type("1.5")
    to("Blind vote")
    keys.press("Space")
    expect(panel.get_by_label("Blind vote")).to_be_checked()
    panel.get_by_label("Ask both…").focus()
    keys.type("Who are you?")
    keys.press("Enter")
    panel.get_by_role("button", name="A", exact=True).wait_for()
    panel.locator(".nbt-turns").focus()
    to("A")
    page.picture("chat-keyboard", panel)
    keys.press("Enter")
    expect(panel.locator("[data-voted=true]")).to_have_count(1)
    expect(panel.locator(".nbt-who", has_text=re.compile(r"talk.* · 15"))).to_have_count(1)
    to("Save 1 vote")
    keys.press("Enter")
    expect(panel.get_by_text("Saved in preferences.jsonl")).to_be_visible()
    page.run(1)
    assert page.output(1).strip() == "finished 0.693"
