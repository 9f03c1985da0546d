"""What must still be downloaded, read off huggingface_hub's own cache."""

import json

from nbtune.models import embedded, missing_bytes


def _cache(files):
    from pathlib import Path

    from huggingface_hub.constants import HF_HUB_CACHE

    repo = Path(HF_HUB_CACHE) / "models--somebody--model"
    snapshot = repo / "snapshots" / "abc"
    (repo / "refs").mkdir(parents=True, exist_ok=True)
    (repo / "refs" / "main").write_text("abc")
    snapshot.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (snapshot / name).write_text(text)


def test_a_folder_and_the_embedded_model_need_nothing():
    assert missing_bytes("nbtune/tiny", 100) == 0
    assert missing_bytes(str(embedded.path()), 100) == 0


def test_a_hub_model_is_missing_until_its_last_shard_is_there():
    assert missing_bytes("somebody/model", 100) == 100
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    _cache({"config.json": "{}", "model.safetensors.index.json": json.dumps(index), "model-1.safetensors": ""})
    assert missing_bytes("somebody/model", 100) == 100
    _cache({"model-2.safetensors": ""})
    assert missing_bytes("somebody/model", 100) == 0
