"""Loading: from several threads at once, and from folders without a tokenizer."""

import subprocess
import sys
from pathlib import Path

import pytest

from nbtune.errors import SpecError
from nbtune.models.embedded import path
from nbtune.models.loading import load_tokenizer


def test_threads_that_import_transformers_together_all_get_it() -> None:
    """It puts another module in its place while it is imported; who waited for that could not import a name."""
    code = """if True:
        import threading
        from nbtune import models
        found = []
        load = lambda: found.append(models.load_tokenizer("nbtune/tiny"))
        threads = [threading.Thread(target=load) for _ in range(3)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        print(len(found))"""
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout.strip() == "3", made.stderr[-2000:]


@pytest.mark.parametrize("there", [(), ("tokenizer.json",)])
def test_a_model_without_a_tokenizer_is_told_in_our_words(tmp_path: Path, there: tuple[str, ...]) -> None:
    """transformers speaks of "one of: )" where there is none."""
    for file in path().iterdir():
        if file.suffix in (".json", ".safetensors") and "token" not in file.name:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    for name in there:
        (tmp_path / name).write_text("{}")
    with pytest.raises(SpecError) as caught:
        load_tokenizer(str(tmp_path))
    assert "backend" not in str(caught.value)
    assert "tokenizer.json" in str(caught.value)
    assert ("has no tokenizer:" in str(caught.value)) == (not there)
