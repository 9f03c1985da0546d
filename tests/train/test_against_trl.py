"""TRL's SFTTrainer is the oracle: the same rows in the same order give the same losses, step by step."""

import pytest
import torch

from nbtune.train.loop import Jobs, LoopOptions, train
from nbtune.train.loss import TokenLoss
from nbtune.train.progress import Progress
from nbtune.train.schedule import learning_rate_of
from nbtune.train.stepper import Stepper
from tests.support.control import MemoryControl

STEPS, MICRO, ACCUMULATION, LR = 5, 2, 3, 1e-3


def _rows():
    """30 rows of unequal length with unequal shares of trained tokens."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for index in range(STEPS * MICRO * ACCUMULATION):
        length = 6 + index % 11
        ids = torch.randint(3, 100, (length,), generator=generator).tolist()
        prompt = 1 + index % (length - 2)
        rows.append({"input_ids": ids, "completion_mask": [0] * prompt + [1] * (length - prompt)})
    return rows


def _model():
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=100, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    model = get_peft_model(LlamaForCausalLM(config), LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def _trl_losses(tmp_path):
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from torch.utils.data import SequentialSampler
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    losses: list[float] = []

    class Watched(SFTTrainer):
        def _get_train_sampler(self, dataset=None):
            return SequentialSampler(dataset if dataset is not None else self.train_dataset)

        def training_step(self, *args, **kwargs):
            loss = super().training_step(*args, **kwargs)
            losses.append(float(loss))
            return loss

    words = {f"w{i}": i for i in range(97)} | {"<s>": 97, "</s>": 98, "<pad>": 99}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")), eos_token="</s>", pad_token="<pad>"
    )
    config = SFTConfig(
        output_dir=str(tmp_path), max_steps=STEPS, per_device_train_batch_size=MICRO, bf16=False, use_cpu=True,
        gradient_accumulation_steps=ACCUMULATION, learning_rate=LR, lr_scheduler_type="cosine", warmup_steps=1,
        max_grad_norm=1.0, report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True,
        completion_only_loss=True, optim="adamw_torch", weight_decay=0.01, seed=1, gradient_checkpointing=False,
    )  # fmt: skip
    trainer = Watched(_model(), args=config, train_dataset=Dataset.from_list(_rows()), processing_class=tokenizer)
    trainer.train()
    return [sum(losses[i : i + ACCUMULATION]) for i in range(0, len(losses), ACCUMULATION)]


class _InOrder:
    steps_per_epoch = STEPS

    def __init__(self):
        from nbtune.data.prepare.dataset import Builder

        builder = Builder(["rows"])
        for number, row in enumerate(_rows()):
            builder.add(row["input_ids"], [bool(m) for m in row["completion_mask"]], 0, number)
        self.dataset = builder.build()

    def step(self, index):
        from nbtune.data.batching.collate import collate

        first = index * MICRO * ACCUMULATION
        return [collate(self.dataset, [first + k * MICRO + i for i in range(MICRO)]) for k in range(ACCUMULATION)]


def _stepper(kind):
    from nbtune.models import Built
    from nbtune.models.accelerate import apply

    model, device = _model(), torch.device("cpu")
    patch = apply(model, "keep") if kind != "stock" else None
    model.train()
    if kind == "recorded":
        from nbtune.train.cuda_graph_stepper import FusedStepper

        built = Built(model, None, None, patch)
        return FusedStepper(built, weight_decay=0.01, max_grad_norm=1.0, device=device)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LR, weight_decay=0.01)
    loss = TokenLoss(fused=kind != "stock")
    return Stepper(model, loss, optimizer, max_grad_norm=1.0, seed=1, device=device)


def _our_losses(kind, stepper=None, progress=None, upto=STEPS):
    from nbtune import events

    options = LoopOptions(
        total_steps=upto,
        learning_rate=LR,
        factor=learning_rate_of("cosine", total_steps=STEPS, warmup_ratio=1 / STEPS),
        eval_every=10**9,
        checkpoint_every=None,
        checkpoint_seconds=1e9,
    )
    said = []
    jobs = Jobs(
        save=lambda progress: events.Checkpoint(step=progress.step, folder=""),
        evaluate=lambda look: None,
        sample=lambda step, look: [],
        between=lambda _: None,
    )
    stepper, progress = stepper or _stepper(kind), progress or Progress()
    train(stepper, _InOrder(), options, jobs, progress=progress, emit=said.append, control=MemoryControl())
    return [event.loss for event in said if isinstance(event, events.Step)]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    return _trl_losses(tmp_path_factory.mktemp("trl"))


@pytest.mark.filterwarnings("ignore")  # trl's and transformers' own deprecations are not ours to mend
@pytest.mark.parametrize("kind", ["stock", "accelerated", "recorded"])
def test_losses_equal_trls_with_accumulation_and_unequal_trained_tokens(theirs, kind):
    ours = _our_losses(kind)
    assert len(ours) == STEPS
    assert ours == pytest.approx(theirs, rel=1e-6)
    assert ours[-1] != pytest.approx(ours[0], rel=1e-3)


@pytest.mark.parametrize(("first", "then"), [("accelerated", "recorded"), ("recorded", "accelerated")])
def test_a_run_can_go_on_with_the_other_stepper(first, then):
    whole = _our_losses(first)
    before, after, progress = _stepper(first), _stepper(then), Progress()
    begun = _our_losses(first, before, progress, upto=2)
    with torch.no_grad():
        for old, new in zip(_trained(before), _trained(after), strict=True):
            new.copy_(old)
    after.load_state_dict(before.state_dict())
    assert begun + _our_losses(then, after, progress) == pytest.approx(whole, rel=1e-5)


def _trained(stepper):
    model = stepper.model if hasattr(stepper, "model") else stepper._step.model
    return [p for p in model.parameters() if p.requires_grad]
