"""First values of a LoRA by which a model is its base again: those that are taken out of it, as of PiSSA (Meng et al.
2024) and OLoRA (Büyükakyüz 2024), and the biases that are trained with it.

    W = W' + s B₀ A₀        W' is frozen, B and A are trained from B₀ and A₀ on

What a run trains beside is W', which no file holds. So B₀ and A₀ are kept: by them W' is made again to the bit, the
base is asked, and what is saved fits the base that everybody has: s (B A − B₀ A₀), a LoRA of twice the rank. Biases
that are trained stand in the base itself: without B₀, A₀ and their first values it would be another one.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbtune.atomic_io import replace_file
from nbtune.errors import SpecError, TrainError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from nbtune.models.adapter_targets import Targets
    from nbtune.spec import AdapterSpec

FILE = "first_values.safetensors"  # in a run's folder
_PLACE = "adapter.init_lora_weights"


class FirstValues:
    """What a model's LoRA began with.

    Args:
        tensors: by the names of all that is trained; kept on the CPU.
        taken_out: the factors' product was taken out of the base.
    """

    def __init__(self, tensors: "Mapping[str, torch.Tensor]", *, taken_out: bool) -> None:
        self.tensors, self.taken_out = dict(tensors), taken_out

    @contextmanager
    def put_in(self, model: "nn.Module") -> Iterator[None]:
        """Make a model the base that it was, without dropout and gradients, for as long as this lasts."""
        import torch

        dropping = [m for m in model.modules() if isinstance(m, torch.nn.Dropout) and m.training]
        mine = {name: p for name, p in model.named_parameters() if name in self.tensors}
        now = {name: p.detach().clone() for name, p in mine.items()}
        with torch.no_grad():
            try:
                for name, p in mine.items():
                    p.copy_(self.tensors[name])
                for module in dropping:
                    module.eval()
                yield
            finally:
                for name, p in mine.items():
                    p.copy_(now[name])
                for module in dropping:
                    module.train()

    def save(self, folder: Path) -> None:
        """Write them into a run's folder."""
        from safetensors.torch import save_file

        with replace_file(folder / FILE) as fresh:
            save_file(self.tensors, fresh)


def check(model: "nn.Module", adapter: "AdapterSpec", targets: "Targets") -> None:
    """Refuse layers that have no such values.

    Raises:
        SpecError: they are experts' stacks, narrower than the rank, or of loftq none that 4 bits round.
    """
    from nbtune.models.adapter_targets import adapted_weights, modules_of

    of_rounding = adapter.init_lora_weights == "loftq"
    if not adapter.changes_base and not of_rounding:
        return
    if targets.parameters:
        raise SpecError(
            f"experts' stacked weights have no first values `{adapter.init_lora_weights}`",
            place=_PLACE,
            fix="Name other layers, as in target_modules: [q_proj, v_proj], or drop init_lora_weights.",
        )
    layers = modules_of(model, targets.modules)
    if whole := sorted(layers.keys() - _rounded(model)) if of_rounding else []:
        raise SpecError(
            f"`{whole[0]}` is not rounded to 4 bits, so nothing of it is lost that first values `loftq` could hold",
            place=_PLACE,
            fix="Name other layers, as in target_modules: [q_proj, v_proj], or drop init_lora_weights.",
        )
    most = max([adapter.r, *adapter.rank_pattern.values()])
    for name, weight in adapted_weights(model, targets).items():
        module = layers.get(name.removesuffix(".weight"))
        sides = [getattr(module, side, 0) for side in ("in_features", "out_features")]  # 4 bits have another shape
        if (narrow := min(sides) or min(weight.shape)) < most:
            raise SpecError(
                f"`{name}` has only {narrow} directions, and the rank is {most}",
                place=_PLACE,
                fix="Lower the rank, or drop init_lora_weights.",
            )


def _rounded(model: Any) -> set[str]:
    """Return the layers that 4 bits round (`nbtune.models.four_bit`), of a model where they are or are still to be."""
    from nbtune.models.adapter_targets import linears, rounded_linears
    from nbtune.spec.placement import Placement

    done = {name for name, module in linears(model) if type(module).__name__ == "Linear4bit"}
    return done or {*rounded_linears(model, Placement(format="nf4"))}


def check_files(adapter: "AdapterSpec", targets: Iterable[str], headers: Iterable[str], model: Any) -> None:
    """Refuse first values that are made of numbers which the model's files have under other names, or otherwise.

    Args:
        targets: the names of the weights that the adapter is put onto.
        headers: the names in the files; none: they are not known.
        model: without its numbers.

    Raises:
        SpecError: see above, as `loftq` says it.
    """
    from nbtune.models.stored_names import Loading

    stored = list(headers)
    if adapter.init_lora_weights != "loftq" or not stored:
        return
    loading = Loading(model)
    there = {path for path, converted in map(loading.name_of, stored) if converted is None}
    if missing := set(targets) - there:
        raise _not_in_files(min(missing))


def _not_in_files(name: str) -> SpecError:
    return SpecError(
        f"the weight `{name}` is not in the model's files as it is, so what rounding took is not known",
        place=_PLACE,
        fix="Drop init_lora_weights.",
    )


def remember(model: Any, *, taken_out: bool) -> None:
    """Keep what a model begins with (see `FirstValues`); of an outline there is nothing to keep."""
    if any(p.is_meta for p in model.parameters()):
        return
    kept = {name: p.detach().cpu().clone() for name, p in model.named_parameters() if p.requires_grad}
    model.nbtune_first_values = FirstValues(kept, taken_out=taken_out)


def recall(model: Any, file: Path, *, taken_out: bool) -> None:
    """Begin with kept values as the first of a run's processes did: they are taken out of the base where it took them.

    Raises:
        TrainError: they are of another model.
    """
    import torch
    from peft.tuners.lora import LoraLayer
    from safetensors.torch import load_file

    first = FirstValues(load_file(file), taken_out=taken_out)
    mine = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if {n: p.shape for n, p in mine.items()} != {n: t.shape for n, t in first.tensors.items()}:
        raise TrainError("its first values are of another model or adapter", place=f"{file.parent.name}/{file.name}")
    with torch.no_grad():
        for name, p in mine.items():
            p.copy_(first.tensors[name])
        for module in model.modules():
            if taken_out and isinstance(module, LoraLayer) and "default" in module.lora_A:
                _subtract(module)
    model.nbtune_first_values = first


def by_peft(model: "nn.Module", adapter: "AdapterSpec", targets: "Targets") -> str:
    """Return which first values peft gives, by its name for them; "": its default ones, or `begin` gives them.

    Of those that are taken out of the base, peft computes the factors, then rounds them to the base's type: what it
    took out is not their product, and a run that goes on would take out another one. And orthogonal ones it makes in
    the type of the base's numbers, which cannot be learnt where these have 4 bits, and of one expert of several.
    """
    from nbtune.models.adapter_targets import adapted_weights

    first = adapter.init_lora_weights
    whole = not targets.parameters and all(w.is_floating_point() for w in adapted_weights(model, targets).values())
    return first if first == "gaussian" or (first == "orthogonal" and whole) else ""


def begin(model: Any, adapter: "AdapterSpec") -> None:
    """Give a new LoRA the first values that peft does not (`by_peft`); of an outline nothing is computed."""
    import torch
    from peft.tuners.lora import LoraLayer

    first = adapter.init_lora_weights
    layers = [m for m in model.modules() if isinstance(m, LoraLayer) and "default" in m.lora_A]
    with torch.no_grad():
        for layer in layers if not any(p.is_meta for p in model.parameters()) else []:
            if first == "orthogonal":
                _orthogonal(layer)
            elif adapter.changes_base:
                _take_out(layer, first)


def _take_out(layer: Any, first: str) -> None:
    weight = layer.get_base_layer().weight
    whole = weight.data.clone()
    if first == "olora":
        layer.olora_init("default")
    else:
        layer.pissa_init("default", first)
    weight.data = whole
    _subtract(layer)


def _orthogonal(layer: Any) -> None:
    """Let A and B be of the odd and the even rows of an orthogonal matrix, each expert's of one of its own, so that
    their product is zero and neither of them is (after datta0.github.io/posts/rethink-lora-init)."""
    import torch

    a, b, rank = layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.r["default"]
    several = a.shape[0] // rank
    rows, columns = a.view(several, rank, -1), b.view(-1, rank, several)
    for expert in range(several):
        q, _ = torch.linalg.qr(torch.randn(rank, rank))
        rows[expert] = (torch.randn(a.shape[1], rank // 2) @ q[0::2]).T / 10
        columns[:, :, expert] = torch.randn(rank // 2, b.shape[0]).T @ q[1::2] / 10


def _subtract(layer: Any) -> None:
    """Take B A out of a layer's weight as peft does: in fp32, rounded once."""
    import torch

    weight, a, b = layer.get_base_layer().weight, layer.lora_A["default"].weight, layer.lora_B["default"].weight
    whole = weight.data.to(torch.float32)
    whole = whole.T if layer.fan_in_fan_out else whole
    rest = whole - layer.scaling["default"] * b @ a
    weight.data = (rest.T if layer.fan_in_fan_out else rest).to(weight.dtype).contiguous()


def loftq(model: Any, name: str) -> None:
    """Let a LoRA on 4-bit weights begin with what rounding took from them (Li et al. 2023, "LoftQ", one step: the
    4-bit weights stay those of the base, so that nothing need be kept of it).

    Args:
        name: ``nbtune/tiny``, a folder, or a Hub id, whose files hold the weights as they were.

    Raises:
        SpecError: they are not under the names that the model has them by.
    """
    import torch
    from bitsandbytes.functional import dequantize_4bit
    from peft.tuners.lora import LoraLayer

    layers = {path: m for path, m in model.get_base_model().named_modules() if isinstance(m, LoraLayer)}
    with torch.no_grad():
        for path, weight in _as_stored(model.get_base_model(), name, [f"{path}.weight" for path in layers]):
            module: Any = layers[path.removesuffix(".weight")]
            kept = module.get_base_layer().weight
            rounded = dequantize_4bit(kept.data, kept.quant_state).float()
            lost = (weight.T if is_turned(module.get_base_layer()) else weight).to(rounded) - rounded
            u, s, vh = torch.linalg.svd(lost, full_matrices=False)
            rank, root = module.r["default"], (s / module.scaling["default"]).sqrt()
            module.lora_A["default"].weight.copy_(root[:rank, None] * vh[:rank])
            module.lora_B["default"].weight.copy_(u[:, :rank] * root[:rank])


def is_turned(layer: Any) -> bool:
    """Return whether a layer of 4 bits was one whose weight lies as (in, out): GPT-2's."""
    return getattr(getattr(layer, "source_cls", None), "__name__", "") == "Conv1D"


def _as_stored(model: Any, name: str, wanted: list[str]) -> "Iterator[tuple[str, torch.Tensor]]":
    """Yield weights of a model's files by their names in the model."""
    from safetensors import safe_open

    from nbtune.models.loading import resolve
    from nbtune.models.stored_names import Loading

    loading, left = Loading(model), set(wanted)
    for file in sorted(resolve(name).glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for stored in opened.keys():  # noqa: SIM118 — no mapping
                path, converted = loading.name_of(stored)
                if converted is None and path in left:
                    left.discard(path)
                    yield path, opened.get_tensor(stored)
    if left:
        raise _not_in_files(min(left))


def kept_in(folder: Path) -> Path | None:
    """Return the file of a run's first values; None: it has none."""
    file = folder / FILE
    return file if file.exists() else None


def keep_first_values(model: Any, folder: Path, *, writes: bool) -> None:
    """Write a model's into its run's folder, where it has some that are not there yet.

    Args:
        writes: this process owns the folder.
    """
    first = first_values_of(model)
    if first is not None and writes and kept_in(folder) is None:
        first.save(folder)


def first_values_of(model: Any) -> FirstValues | None:
    """Return what was taken out of a model's base; None: nothing."""
    return getattr(model, "nbtune_first_values", None)


def as_the_base(model: Any) -> AbstractContextManager[Any]:
    """Make a model with an adapter its base, for as long as this lasts."""
    first = first_values_of(model)
    return model.disable_adapter() if first is None else first.put_in(model)  # type: ignore[no-any-return]


def beside_the_base(
    model: Any, tensors: "dict[str, torch.Tensor]", config: dict[str, Any]
) -> "tuple[dict[str, torch.Tensor], dict[str, Any]]":
    """Return an adapter's file and config as they fit the base from which nothing was taken (peft does it likewise,
    with `path_initial_model_for_weight_conversion`).

    Args:
        tensors: as peft names them, without the adapter's name.
        config: its adapter_config.
    """
    import torch

    first = first_values_of(model)
    if first is None or not first.taken_out:
        return tensors, config
    begun = {n.replace(".default.", "."): value for n, value in first.tensors.items() if ".lora_" in n}
    joined = dict(tensors)
    for name, start in begun.items():
        now = tensors[name]
        a = ".lora_A." in name
        joined[name] = torch.cat([now, (start if a else -start).to(now)], dim=0 if a else 1).contiguous()
    alpha = 2**0.5 if config["use_rslora"] else 2  # s stays alpha / r, or alpha / √r
    twice = {
        "r": config["r"] * 2,
        "lora_alpha": config["lora_alpha"] * alpha,
        "rank_pattern": {name: rank * 2 for name, rank in config["rank_pattern"].items()},
        "alpha_pattern": {name: each * alpha for name, each in config["alpha_pattern"].items()},
        "init_lora_weights": True,
    }
    return joined, {**config, **twice}
