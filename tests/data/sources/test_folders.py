"""A local folder is a dataset: its splits and configs are told apart, and its README is not rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nbtune.data import resolve
from nbtune.errors import DataError
from nbtune.spec import from_mapping

CONFIGS = """
- config_name: en
  data_files:
  - {split: train, path: en/a-*.jsonl}
  - split: test_sft
    path: [en/b.jsonl, "en/more/**"]
- config_name: de
  data_files: de.jsonl
- config_name: by_names
  data_dir: named
"""


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def texts(split: str = "train", source: str = "set", **more: str) -> list[str]:
    spec = from_mapping({"data": [{"source": source, "split": split, **more}]})
    return [row["text"] for row in resolve(spec.data, {})[0].rows]


def write(*names: str) -> None:
    for name in names:
        file = Path("set") / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"text": name}) + "\n")


def readme(configs: str, rest: str = "# A set\n") -> None:
    (Path("set")).mkdir(exist_ok=True)
    Path("set/README.md").write_text(f"---\nlanguage: en\nconfigs:{configs}\n---\n{rest}")


@pytest.mark.parametrize("form", ["{}.jsonl", "data/{}-00000-of-00001.jsonl", "{}/part.jsonl", "my_{}_rows.jsonl"])
def test_a_folders_splits_are_told_by_its_names(form: str) -> None:
    write(*(form.format(split) for split in ("train", "dev", "test")), "README.md")
    assert [texts(split) for split in ("train", "validation", "test")] == [
        [form.format(split)] for split in ("train", "dev", "test")
    ]
    with pytest.raises(DataError, match="no split `more`"):
        texts("more")
    with pytest.raises(DataError, match="no config `en`"):
        texts(config="en")
    write("extra.jsonl")
    with pytest.raises(DataError, match=r"extra\.jsonl"):
        texts()


def test_a_folder_without_splits_is_all_to_train_on() -> None:
    write("a.jsonl", "b.jsonl", "README.md")
    assert texts() == ["a.jsonl", "b.jsonl"]
    with pytest.raises(DataError, match="no split `test`"):
        texts("test")


def test_what_tells_of_a_set_is_none_of_its_rows() -> None:
    write("a.txt", "LICENSE.txt", "readme_en.md", "CITATION.md", "dataset_infos.json", ".git/b.txt", ".hidden.txt")
    assert len(texts()) == 1
    write("train.jsonl")
    with pytest.raises(DataError, match=r"`train\.jsonl`.*`a\.txt`"):
        texts()


def test_the_readme_says_which_files_are_meant() -> None:
    write("en/a-1.jsonl", "en/a-2.jsonl", "en/b.jsonl", "en/more/c.jsonl", "en/more/x/d.jsonl", "de.jsonl")
    write("named/train.jsonl", "named/test.jsonl", "old/train.jsonl")
    readme(CONFIGS)
    assert texts(config="en") == ["en/a-1.jsonl", "en/a-2.jsonl"]
    assert texts("test_sft", config="en") == ["en/b.jsonl", "en/more/c.jsonl", "en/more/x/d.jsonl"]
    assert texts(config="de") == ["de.jsonl"]
    assert texts("test", config="by_names") == ["named/test.jsonl"]
    with pytest.raises(DataError, match=r"3 configs(.|\n)*`en`, `de`, `by_names`"):
        texts()
    with pytest.raises(DataError, match=r"no config `fr`(.|\n)*`en`, `de`, `by_names`"):
        texts(config="fr")
    with pytest.raises(DataError, match=r"no split `test`(.|\n)*`train`, `test_sft`"):
        texts("test", config="en")


@pytest.mark.parametrize(
    "configs",
    [
        "\n- config_name: one\n  data_files: {train: a.jsonl, validation: b.jsonl}",
        "\n- data_files: [{split: train, path: a.jsonl}, {split: dev, path: [b.jsonl]}]",
        "\n- {config_name: x, data_files: b.jsonl}\n- {config_name: y, data_files: {train: a.jsonl, val: b.jsonl},"
        " default: true}",
        "\n- {config_name: x, data_files: b.jsonl}\n- {config_name: default, data_files: {train: a.jsonl, dev: b*}}",
    ],
)
def test_a_default_config_is_taken_and_splits_go_by_their_usual_names(configs: str) -> None:
    write("a.jsonl", "b.jsonl")
    readme(configs)
    assert (texts(), texts("validation")) == (["a.jsonl"], ["b.jsonl"])


@pytest.mark.parametrize(
    ("configs", "why"),
    [
        (" en", "no list"),
        ("\n- config_name: [a", "line"),
        ("\n- &a {data_files: a.jsonl}\n- *a", "anchors"),
        ("\n- {config_name: a, data_files: a.jsonl}\n- {config_name: a, data_files: b.jsonl}", "twice"),
        ("\n- {config_name: a, default: true}\n- {config_name: b, default: true}", "more than one"),
        ("\n- {data_files: ../secret.jsonl}", "outside"),
        ("\n- {data_files: /etc/passwd}", "outside"),
        ("\n- {data_files: 'hf://other/set/a.jsonl'}", "outside"),
        ("\n- {data_dir: ..}", "no folder in it"),
        ("\n- {data_files: {train: 5}}", "by split"),
        ("\n- {data_files: [a.jsonl, {split: x}]}", "by split"),
        ("\n- {data_files: a.jsonl, sep: ';'}", "`sep`"),
        ("\n- {data_files: gone.jsonl}", "gone"),
        ("\n- {data_files: []}", "by split"),
    ],
)
def test_a_readme_that_cannot_be_followed_is_refused(configs: str, why: str) -> None:
    write("a.jsonl", "b.jsonl")
    Path("secret.jsonl").write_text('{"text": "secret"}\n')
    readme(configs)
    with pytest.raises(DataError, match=why):
        texts()


def test_a_readme_without_configs_is_as_none() -> None:
    write("a.jsonl", "b.jsonl")
    readme("", "the head is broken: [\n")
    Path("set/README.md").write_text("---\ntags: [a\n---\n# configs: none\n")
    assert texts() == ["a.jsonl", "b.jsonl"]


def test_keys_that_choose_a_part_are_refused_where_there_is_none() -> None:
    import datasets

    write("a.jsonl")
    for source in ("set/a.jsonl", "set/*.jsonl", "nbtune/json-answers"):
        for key in ("split", "config", "revision"):
            with pytest.raises(DataError, match=f"has no `{key}`"):
                texts(**{"source": source, key: "test"})
    with pytest.raises(DataError, match="has no `revision`"):
        texts(revision="main")
    parts = {split: datasets.Dataset.from_list([{"text": split}], split=split) for split in ("train", "test")}
    both = datasets.DatasetDict(parts)
    variables: dict[str, Any] = {"both": both, "rows": [{"text": "a"}], **parts}

    def taken(source: str, split: str) -> list[Any]:
        spec = from_mapping({"data": [{"source": source, "split": split}]})
        return list(resolve(spec.data, variables)[0].rows)

    assert taken("both", "test") == [{"text": "test"}] == taken("test", "test") == taken("test", "train")
    for source in ("both", "rows", "train"):
        with pytest.raises(DataError, match="split"):
            taken(source, "validation")
    both.save_to_disk("saved")
    parts["test"].save_to_disk("one")
    assert texts("test", source="saved") == ["test"] == texts("test", source="one")
    for key in ("split", "config"):
        for source in ("saved", "one"):
            with pytest.raises(DataError, match=key):
                texts(**{"source": source, key: "other"})
