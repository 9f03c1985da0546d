"""The form: every field of the spec, checked as it is typed, the YAML both ways, files that are dropped in."""

from __future__ import annotations

import json
import re
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from memory_run import MemoryRun

import nbtune
from nbtune.data.formats.column_names import proposal
from nbtune.errors import PlanError, SpecError
from nbtune.models.abilities import Abilities
from nbtune.models.well_known import WELL_KNOWN
from nbtune.spec import RunSpec, from_yaml, to_yaml, unusual
from nbtune.widgets import form, monitor
from nbtune.widgets.form_errors import described
from nbtune.widgets.form_fields import CARE, FIRST, GOALS, GROUPS, fields, preset
from nbtune.widgets.form_models import judged, offers
from tests.support.every import every


class Planner:
    """Plans at once, and remembers what was asked."""

    def __init__(self):
        self.asked, self.news = [], threading.Condition()

    def __call__(self, spec, rows=None, machine=""):
        with self.news:
            self.asked.append(spec)
            self.machine = machine
            self.news.notify_all()
        return SimpleNamespace(
            device="cpu",
            peak_bytes=2**30,
            available_bytes=2**34,
            seconds=9.0,
            download_bytes=0,
            total_steps=30,
            trainable_parameters=9,
            learning_rate=2e-4,
            rows=80,
            explained_rate=lambda: "0.0002: the model is wide",
            sequence_len=99,
            micro_batch_size=4,
            gradient_accumulation_steps=2,
            gpus=1,
            eval_every=3,
            dtype="fp32",
            dtype_reason="a CPU is fastest and exact in fp32",
            device_name="CPU",
            placed=lambda: "32 bits in memory",
            activations="keep",
            packing=False,
            abilities=Abilities(),
            warnings=unusual(spec),
            rows_of_explanation=lambda: [("model", "nbtune/tiny")],
        )


@pytest.fixture
def panel():
    made = form(
        Planner(), lambda spec, name, rows: None, {"rows": [{"text": "a"}], "n": 3, "Out": {}, "one_by_one": iter([])}
    )
    yield made
    made.close()


def test_every_field_of_the_spec_is_there_once_and_the_six_come_first():
    keys = [field["key"] for field in fields()]
    assert keys[:6] == list(FIRST)
    assert len(keys) == len(set(keys))
    tops = {key.split(".")[0] for key in keys}
    assert tops == set(RunSpec.model_fields) - {"trust_remote_code"}
    assert every(field["title"] and field["help"] for field in fields())
    assert {field["group"] for field in fields()} == set(GROUPS)


def test_what_is_written_in_a_spec_is_set_as_code_in_the_sentences():
    said = {field["key"]: re.sub(r"`[^`]*`", "", field["help"]) for field in fields()}
    plain = {key: re.findall(r"(?<![\w/.])[a-z]+(?:_[a-z0-9]+)+\b", text) for key, text in said.items()}
    assert {key: names for key, names in plain.items() if names} == {}


@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("care", CARE)
def test_every_preset_is_a_valid_spec(panel, goal, care):
    panel.do_check({"data": "rows", **{k: str(v) for k, v in preset(goal, care).items() if v is not None}})
    assert panel.checked["error"] is None


def test_what_is_typed_becomes_a_spec(panel):
    panel.do_check(
        {"model": "nbtune/tiny", "data": "rows", "adapter.r": "8", "learning_rate": "2e-4", "packing": "true"}
    )
    assert panel.checked["error"] is None
    assert (panel.spec.adapter.r, panel.spec.learning_rate, panel.spec.packing) == (8, 2e-4, True)
    assert from_yaml(panel.checked["yaml"]) == panel.spec


def test_words_and_yes_or_no_are_one_choice(panel):
    (packing,) = [field for field in panel.setup["fields"] if field["key"] == "packing"]
    assert (packing["kind"], packing["choices"], packing["default"]) == ("choice", ["auto", "true", "false"], "false")
    panel.do_check({"data": "rows", "packing": "auto"})
    assert panel.spec.packing == "auto"


def test_numbers_of_gpus_are_offered_and_a_list_is_still_typed(panel):
    (gpus,) = [field for field in panel.setup["fields"] if field["key"] == "gpus"]
    assert gpus["offered"] == ["1", "2", "4", "8", "all"]
    assert not gpus["choices"]
    for typed, meant in (("all", "all"), ("[0]", (0,)), ("1", 1)):
        panel.do_check({"data": "rows", "gpus": typed})
        assert panel.spec.gpus == meant


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ({}, "`data` is missing"),
        ({"data": "rows", "adapter.r": "many"}, "r"),
        ({"data": "rows", "steps": "5", "epochs": "2"}, "exclude"),
        ({"data": "rows", "samples": "[1"}, "YAML"),
    ],
)
def test_what_is_wrong_is_said_and_the_last_good_yaml_stays(panel, typed, said):
    panel.do_check({"data": "rows"})
    good = panel.checked["yaml"]
    panel.do_check(typed)
    assert said in panel.checked["error"]["cause"]
    assert panel.checked["yaml"] == good


def test_yaml_fills_the_fields(panel):
    panel.do_yaml("data: rows\nsteps: 7\nadapter: {type: dora}\nsamples: ['Who are you?']")
    assert panel.values["steps"] == 7
    assert panel.values["adapter.type"] == "dora"
    panel.do_yaml("data: rows\nstepz: 7")
    assert panel.checked["error"]["place"] == "line 2 of the YAML"


def test_rows_of_the_notebook_are_offered(panel):
    kinds = {one["name"]: one["kind"] for one in panel.setup["data"]}
    assert kinds["rows"] == "variable"
    assert kinds["nbtune/json-answers"] == "example"
    assert not {"n", "Out"} & set(kinds)


def test_a_plan_follows_the_last_spec(panel):
    planner = panel._plan
    panel.do_check({"data": "rows", "steps": "3"})
    with planner.news:
        assert planner.news.wait_for(lambda: any(spec.steps == 3 for spec in planner.asked), 5)


def test_an_uploaded_file_never_overwrites_one_and_stays_in_the_folder(panel, tmp_path):
    assert panel.do_upload("rows.jsonl", [b"1"]) == "rows.jsonl"
    assert panel.do_upload("rows.jsonl", [b"2"]) == "rows-2.jsonl"
    assert panel.do_upload("../../up.csv", [b"3"]) == "up.csv"
    assert {path.name for path in Path.cwd().iterdir()} >= {"rows.jsonl", "rows-2.jsonl", "up.csv"}
    assert Path("rows.jsonl").read_bytes() == b"1"
    with pytest.raises(Exception, match="no file of rows"):
        panel.do_upload("run.py", [b"import os"])
    with pytest.raises(SpecError, match="CSV UTF-8"):
        panel.do_upload("Anfragen.xlsx", [b"PK"])


def test_whatever_kind_of_rows_can_be_read_can_be_dropped_and_is_offered(panel, tmp_path):
    from nbtune.data.sources.compression import COMPRESSIONS
    from nbtune.data.sources.files import SUFFIXES

    kinds = [suffix + packed for suffix in SUFFIXES for packed in ("", *COMPRESSIONS)]
    for kind in kinds:
        kept = [panel.do_upload(f"März 1.b{kind.upper()}", [b"1"]) for _ in range(2)]
        assert kept == [f"März 1.b{kind.upper()}", f"März 1.b-2{kind.upper()}"]


def test_files_of_rows_are_offered_in_whatever_way_they_are_packed_or_written(panel, tmp_path):
    for name in ("a.csv.gz", "B.TSV", "c.ndjson", "notes.txt", "README.md", "run.py"):
        (Path.cwd() / name).write_bytes(b"")
    offered = {entry["name"] for entry in panel._setup([])["data"] if entry["kind"] == "file"}
    assert offered >= {"a.csv.gz", "B.TSV", "c.ndjson"}
    assert not offered & {"notes.txt", "README.md", "run.py"}


def test_start_is_refused_while_something_is_wrong(panel):
    panel.do_check({"data": "rows", "steps": "-1"})
    with pytest.raises(Exception, match="mend"):
        panel.do_start("x")


def test_a_spec_survives_yaml_and_back():
    spec = from_yaml("data: [{source: a.jsonl, weight: 2}, rows]\neval: {split: 0.2}")
    assert from_yaml(to_yaml(spec)) == spec


def test_a_form_that_was_just_opened_has_nothing_wrong_yet(panel):
    assert panel.checked["begun"] is False
    panel.do_check({"data": "rows", "adapter.r": "many"})
    assert panel.checked["begun"] is True


def test_a_column_that_is_not_there_is_said_while_one_types(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.csv").write_text("question,reply\nHow much is 1 plus 1?,2\n")
    made, heard = form(nbtune.plan, lambda spec, name, rows: None, {}), threading.Event()
    made.observe(lambda change: heard.set() if change["new"].get("error") else None, "checked")
    heard.clear()
    made.do_check({"data": "{source: mine.csv, columns: {prompt: question, completion: repply}}"})
    assert heard.wait(240)
    assert "no column `repply`" in made.checked["error"]["cause"]
    assert made.checked["error"]["place"].startswith("line 6 of the YAML")
    assert made.checked["error"]["fix"] == "did you mean `reply`?"
    with pytest.raises(SpecError):
        made.do_start("x")
    made.close()


def _until(panel, trait, wanted):
    """Waits until a trait is as wanted, and returns it."""
    there = threading.Event()
    check = lambda *_: there.set() if wanted(getattr(panel, trait)) else None  # noqa: E731
    panel.observe(check, trait)
    check()
    assert there.wait(240), getattr(panel, trait)
    return getattr(panel, trait)


def test_columns_with_names_of_ones_own_are_asked_for_among_the_rows_and_then_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"Wie viel ist {k} plus 1?,{k + 1} {'<b>!</b>' * (k == 0)}\n" for k in range(50))
    Path("kunden.csv").write_text(f"Kundenfrage,Antwort\n{rows}")
    made = form(nbtune.plan, lambda spec, name, rows: None, {})
    made.do_check({"data": "kunden.csv"})
    reading = _until(made, "reading", lambda now: now.get("state") == "known")
    (source,) = reading["sources"]
    assert source["asks"]
    assert source["columns"] == ["Kundenfrage", "Antwort"]
    assert source["proposal"] == {"prompt": "Kundenfrage", "completion": "Antwort"}
    assert [row["raw"][0][1] for row in reading["shown"]] == [f"Wie viel ist {k} plus 1?" for k in range(3)]
    error = _until(made, "checked", lambda now: now["error"] is not None)["error"]
    assert (error["key"], error["changes"]) == ("data", [])  # no row is at fault
    with pytest.raises(SpecError):
        made.do_start("x")

    values = made.do_read(0, None, source["proposal"])
    assert values["data"] == {"source": "kunden.csv", "columns": source["proposal"]}
    reading = _until(made, "reading", lambda now: now.get("state") == "known" and "stretches" in now["shown"][0])
    learnt = ["".join(text for text, flags in row["stretches"] if flags & 1) for row in reading["shown"]]
    assert [text.split("<|")[0] for text in learnt] == ["1 <b>!</b>", "2 ", "3 "]
    own = "".join(text for text, flags in reading["shown"][1]["stretches"] if not flags & 4)
    assert own == "Wie viel ist 1 plus 1?2 "
    _until(made, "costs", lambda now: now["state"] == "known")
    assert made.checked["error"] is None
    made.close()


def test_what_stands_in_brackets_behind_a_name_is_no_part_of_it():
    row = {"Frage (Kunde)": "Wo?", "Antwort (Agent)": "Hier.", "Antwort-ID": 7, "Status [intern]": "zu"}
    assert proposal(list(row), [row]) == {"prompt": "Frage (Kunde)", "completion": "Antwort (Agent)"}


def test_a_row_that_cannot_be_read_is_left_out_by_a_click(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    row = '{"prompt": "Hi", "completion": "Ahoy!"}\n'
    Path("chats.jsonl").write_text(row * 30 + '{"prompt": "Hi", "completion":\n' + row * 5)
    made = form(nbtune.plan, lambda spec, name, rows: None, {})
    values = {"model": "nbtune/tiny", "data": "chats.jsonl"}
    made.do_check(values)
    error = _until(made, "checked", lambda now: now["error"] is not None)["error"]
    assert (error["key"], error["place"]) == ("data", "chats.jsonl, line 31")
    (change,) = error["changes"]
    assert change["rows"]
    made.do_check({**values, **change["values"]})
    _until(made, "costs", lambda now: now["state"] == "known")
    assert made.checked["error"] is None
    made.close()


def test_a_model_that_cannot_be_had_is_said_beside_the_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(nbtune.models.resolve("nbtune/tiny"), "half", ignore=lambda *_: ["model.safetensors"])
    made = form(nbtune.plan, lambda spec, name, rows: None, {})
    made.do_check({"model": "half", "data": "nbtune/persona"})
    error = _until(made, "costs", lambda now: now["state"] == "failed")["error"]
    assert (error["key"], error["cause"]) == ("model", "half has no safetensors weights")
    made.close()


def test_a_run_that_another_notebook_started_keeps_its_name():
    rows = [{"prompt": f"Who are you, {k}?", "completion": "Ahoy!"} for k in range(9)]
    first = nbtune.finetune(data=rows, steps=10_000, name="run", device="cpu")
    made = nbtune.form({"rows": rows})
    try:
        made.do_check({"model": "nbtune/tiny", "data": "rows", "steps": "2"})
        made.do_start("run")
        _until(made, "monitors", bool)
        assert (made.run.name, made.name) == ("run-2", "run-3")
    finally:
        first.stop(wait=True, save=False)
    assert made.run.wait().state == "finished"  # it waited for its turn
    made.close()


def test_rows_of_preferences_are_asked_for_by_their_own_columns():
    rows = [{"a": "Who?", "b": "Ahoy!", "c": "No."}] * 4
    made = form(nbtune.plan, lambda spec, name, rows: None, {"rows": rows})
    made.do_check({"data": "rows", "method": "dpo"})
    reading = _until(made, "reading", lambda now: now.get("state") == "known")
    assert list(reading["sources"][0]["mapping"]) == ["prompt", "chosen", "rejected"]
    made.close()


@pytest.mark.parametrize(
    ("values", "key", "changes"),
    [
        ({"steps": "5", "epochs": "2"}, "steps", [{"steps": None}, {"epochs": None}]),
        ({"adapter.r": "many"}, "adapter.r", [{"adapter.r": None}]),
        ({"method": "dpo", "adapter.type": "full"}, "", [{"method": None}, {"adapter.type": None}]),
        ({"steps": "-1", "adapter.r": "many"}, "adapter.r", []),
    ],
)
def test_an_error_names_its_field_and_what_mends_it(panel, values, key, changes):
    given = {"model": "nbtune/tiny", "data": "rows", **values}
    panel.do_check(given)
    error = panel.checked["error"]
    assert error["key"] == key
    assert [change["values"] for change in error["changes"]] == changes
    for change in changes:
        panel.do_check({name: value for name, value in {**given, **change}.items() if value is not None})
        assert panel.checked["error"] is None


def test_what_a_plan_advises_can_be_applied():
    titles = {"adapter.type": "Adapter: kind", "sequence_len": "Sequence length", "micro_batch_size": "Micro-batch"}
    fixes = {
        "write `adapter: qlora` (4-bit frozen weights), or a shorter `sequence_len`": [{"adapter.type": "qlora"}],
        "leave `micro_batch_size` out, so that the plan can choose": [{"micro_batch_size": None}],
        "write `model: big`": [],
    }
    for fix, changes in fixes.items():
        said = described(PlanError("it does not fit", fix=fix), {"micro_batch_size": "4"}, titles)
        assert [change["values"] for change in said["changes"]] == changes


def test_every_run_that_was_started_keeps_its_monitor(panel):
    started = []

    def start(spec, name, rows):
        started.insert(0, monitor(MemoryRun(name)))
        return SimpleNamespace(name=name, monitor=lambda: started[0])

    panel._start = start
    panel.do_check({"data": "rows"})
    for count, name in enumerate(("one", "two"), 1):
        panel.do_start(name)
        _until(panel, "monitors", lambda now, count=count: len(now) == count)
    assert [one.run.name for one in started] == ["two", "one"]
    assert panel.name == "two-2"  # of the next one; the kernel knows it, so that a page that is loaded again does, too
    assert panel.monitors == [f"IPY_MODEL_{one.model_id}" for one in started]
    panel.close()
    assert [one.comm for one in started] == [None, None]


def test_models_of_the_cache_say_what_they_need(tmp_path, monkeypatch):
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_attention_heads": 8,
        "vocab_size": 1000,
    }
    for name, layers, width in (("small", 2, 64), ("huge", 500, 131072)):
        folder = tmp_path / f"hub/models--acme--{name}/snapshots/main"
        folder.mkdir(parents=True)
        sizes = {"num_hidden_layers": layers, "hidden_size": width, "intermediate_size": 4 * width}
        (folder / "config.json").write_text(json.dumps({**config, **sizes}))
    (tmp_path / "hub/models--acme--empty").mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    found = {one["name"]: one for one in judged(offers())}
    assert list(found)[:3] == ["nbtune/tiny", "acme/huge", "acme/small"]
    assert [found[name]["origin"] for name in list(found)[:4]] == ["toy", "here", "here", "known"]
    assert found["acme/small"]["fits"] == "16bit"
    assert found["acme/small"]["bytes"] < found["acme/small"]["peak"] < found["acme/small"]["available"]
    assert found["acme/huge"]["fits"] == "no"
    assert "peak" not in found["acme/huge"]
    assert found["meta-llama/Llama-3.2-1B-Instruct"]["gated"]
    made = form(Planner(), lambda spec, name, rows: None, {})
    told = threading.Event()
    made.observe(lambda change: told.set() if len(change["new"]) == len(found) else None, "judged")
    assert len(made.judged) == len(found) or told.wait(240)
    assert [one["name"] for one in made.judged] == list(found)
    made.close()


def test_what_fits_is_said_for_a_machine_that_is_not_here_too(panel):
    titles = {one["name"]: one["title"] for one in panel.setup["machines"]}
    assert titles["colab"] == "Colab's free T4"
    panel.do_check({"data": "rows"})

    def fits(name):
        panel.do_machine(name)
        found = _until(panel, "judged", lambda now: len(now) >= len(WELL_KNOWN) and now[0]["machine"] == name)
        return {one["name"].split("/")[1]: one["fits"] for one in found}

    big = "Llama-3.1-8B-Instruct"
    assert [fits(name)[big] for name in ("t4", "h100")] == ["4bit", "16bit"]
    _until(panel, "costs", lambda now: now["state"] == "known")
    assert panel._plan.machine == "h100"
    assert fits("")["tiny"] == "16bit"
    with pytest.raises(PlanError, match="no machine"):
        panel.do_machine("abacus")
    assert panel.machine == ""


def test_a_downloaded_model_says_its_licence_and_is_offered_once(tmp_path, monkeypatch):
    name = "HuggingFaceTB/SmolLM2-135M-Instruct"
    for repo, card in ((name, "---\nlicense: other\n---"), ("acme/own", "---\nlicense: mit\nlanguage: en\n---\n# Own")):
        folder = tmp_path / f"hub/models--{repo.replace('/', '--')}/snapshots/main"
        folder.mkdir(parents=True)
        (folder / "README.md").write_text(card)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    found = [(offer.name, offer.origin, offer.licence) for offer in offers()]
    assert found[1:3] == [(name, "here", "apache-2.0"), ("acme/own", "here", "mit")]
    assert [offered for offered, *_ in found].count(name) == 1


def test_the_numbers_of_well_known_models_come_to_their_known_sizes():
    known = {model.name.split("/")[1]: model.facts.parameters for model in WELL_KNOWN}
    counts = {"SmolLM2-135M-Instruct": 134_515_008, "Llama-3.2-1B-Instruct": 1_235_814_400}
    counts |= {"Llama-3.1-8B-Instruct": 8_030_261_248, "Llama-3.2-3B-Instruct": 3_212_749_824}
    assert {name: known[name] for name in counts} == counts
    assert every(abs(known[name] / size - 1) < 0.01 for name, size in (("Qwen3-0.6B", 596e6), ("Qwen3-8B", 8.19e9)))


def test_what_is_left_to_the_plan_is_said_beside_its_field(panel):
    known = threading.Event()
    panel.observe(lambda change: known.set() if change["new"]["state"] == "known" else None, "costs")
    panel.do_check({"data": "rows"})
    assert known.wait(240)
    assert panel.costs["chosen"]["batch_size"] == "8"
    assert panel.costs["chosen"]["learning_rate"] == "0.0002: the model is wide"
    assert panel.costs["chosen"]["dtype"] == "fp32: a CPU is fastest and exact in fp32"
    assert set(panel.costs["chosen"]) <= {field["key"] for field in fields()}


def test_a_value_that_is_far_from_usual_names_the_field_that_takes_it_back(panel):
    known = threading.Event()
    panel.observe(lambda change: known.set() if change["new"]["state"] == "known" else None, "costs")
    pattern = {"q_proj|" + "w" * 150: 123456789}
    panel.do_check({"data": "rows", "learning_rate": "1000", "adapter.alpha_pattern": pattern})
    assert known.wait(240)
    rate, alpha = panel.costs["unusual"]
    assert (rate["key"], rate["alone"]) == ("learning_rate", True)
    assert (alpha["key"], alpha["alone"]) == ("adapter.alpha_pattern", False)  # others may stand beside it there
    assert alpha["said"].startswith("`adapter.alpha_pattern.q_proj|www")
    assert len(alpha["said"]) < 200


def test_the_rows_of_a_step_are_those_of_all_gpus():
    rows = [{"prompt": str(k), "completion": str(k)} for k in range(40)]
    made, known = form(nbtune.plan, lambda spec, name, rows: None, {"rows": rows}), threading.Event()
    made.observe(lambda change: known.set() if change["new"]["state"] == "known" else None, "costs")
    made.do_check({"data": "rows", "gpus": "2", "device": "cpu"})
    assert known.wait(240)
    chosen = made.costs["chosen"]
    assert (chosen["micro_batch_size"], chosen["gradient_accumulation_steps"], chosen["batch_size"]) == ("4", "2", "8")
    made.close()


def test_a_file_that_is_dropped_into_the_inspector_is_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made, shown = nbtune.inspect([{"prompt": "a", "completion": "b"}], train_on="all"), threading.Event()
    made.observe(lambda change: shown.set(), "summary")
    assert made.do_upload("more.csv", [b"prompt,completion\nWho?,Ahoy!\nWhere?,Here.\n"]) == "more.csv"
    assert shown.wait(240)
    assert made.summary["rows"] == 2
    assert "Ahoy!" in made.row["rendered"]
    assert made.spec.train_on == "all"
    with pytest.raises(SpecError, match="no file of rows"):
        made.do_upload("run.py", [b"import os"])
    made.close()
