"""Models that several threads load at once are each whole: two runs of a notebook on a CPU begin together."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import torch

from nbtune.models import load_model
from nbtune.models.heads import layer_of
from nbtune.models.transformers_state import MAKING
from tests.support.every import every


def test_each_has_all_its_weights() -> None:
    alone = load_model("nbtune/tiny", dtype=torch.float32, device="cpu").state_dict()
    begin = threading.Barrier(3)

    def load(dtype: torch.dtype) -> dict[str, torch.Tensor]:
        begin.wait()
        return load_model("nbtune/tiny", dtype=dtype, device="cpu").state_dict()

    dtypes = [torch.float32, torch.bfloat16, torch.float32]
    with ThreadPoolExecutor(3) as threads:
        for dtype, beside in zip(dtypes, list(threads.map(load, dtypes)), strict=True):
            assert beside.keys() == alone.keys()
            assert every(torch.equal(value.to(dtype), beside[name]) for name, value in alone.items())
    assert torch.get_default_dtype() == torch.float32


def test_a_layer_of_scores_is_looked_for_when_no_other_model_is_made() -> None:
    """Its class is made, too, under a default of numbers' kind that is the whole process's."""
    from transformers import LlamaConfig

    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = LlamaConfig(vocab_size=7, **shape)  # nobody else's: an answer that is known waits for nothing
    found: list[str] = []
    looking = threading.Thread(target=lambda: found.append(layer_of(config, "token")))
    with MAKING:
        looking.start()
        looking.join(1)
        assert not found
    looking.join()
    assert found == ["score"]
