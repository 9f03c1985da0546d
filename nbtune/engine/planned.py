"""The plan of a spec that nobody has begun: for this machine, or for one, or several, that are not here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nbtune import device as machine
from nbtune.data.prepare.report import refuse_untrained
from nbtune.engine import abilities, objects
from nbtune.engine.library_logging import quiet_libraries
from nbtune.engine.run_loss import check_teacher, head_of_run, without_teacher
from nbtune.errors import PlanError, SpecError
from nbtune.methods import METHODS
from nbtune.planner import Plan, make_plan
from nbtune.planner.spread import Links, spread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nbtune.data import Source
    from nbtune.data.prepare.stats import DataFacts
    from nbtune.device import DeviceFacts
    from nbtune.models import ModelFacts
    from nbtune.spec import RunSpec

_FEW = 10_000  # rows of a source that a plan looks through for labels
_MORE = (2, 4, 8, 16, 32, 64)  # times as many machines


def elsewhere(name: str | None, nodes: int, network: float | None) -> DeviceFacts | None:
    """Return the machine that a plan is for; None: this one.

    Raises:
        SpecError: several, and none is named.
        PlanError: see `nbtune.device.machine`.
    """
    if name is not None:
        return machine.machine(name, nodes=nodes, network=network)
    if nodes != 1 or network is not None:
        what = "nodes" if nodes != 1 else "network"
        raise SpecError(f"`{what}` is of machines that are not here", fix="name one, as `--machine 8xh100`")
    return None


def planned(spec: RunSpec, sources: Sequence[Source], where: DeviceFacts | None) -> Plan:
    """Return the plan of a spec.

    Args:
        spec: what was asked for.
        sources: its data, resolved.
        where: a machine that is not here; None: this one.

    Raises:
        NbtuneError: something does not fit, or cannot be read.
    """
    from nbtune import models
    from nbtune.models.four_bit import must_be_installed
    from nbtune.models.heads import with_outputs

    quiet_libraries()  # small copies of the model are tried
    model, trust = spec.model, spec.trust_remote_code
    facts = models.counted(models.model_facts(model), model, spec.adapter, trust_remote_code=trust)
    spec = _labelled(spec, sources)
    facts = with_outputs(facts, head_of_run(spec))
    objects.check_vocabulary(spec)
    tokenizer = models.load_tokenizer(spec.speaks, trust_remote_code=trust)
    if where is not None:  # else `beginnings.look_at` has asked
        check_teacher(spec, tokenizer)
    measured = _measured(sources, tokenizer, spec, one_weight=facts.tied)
    device, gpus = _devices(spec, where)
    missing = models.missing_bytes(model, facts.weights_bytes)
    found = abilities.expected(spec, facts, tokenizer)
    about: dict[str, Any] = {"abilities": found, "download_bytes": missing}
    device = without_teacher(spec, device)
    try:
        plan = make_plan(spec, facts, measured, device, **about, devices=gpus * device.nodes)
    except PlanError as error:
        raise _with_more(error, spec, facts, measured, device, gpus) from error
    if where is None and plan.weights.four_bit:
        must_be_installed()
    return spread_out(plan, facts, device, gpus)


def _labelled(spec: RunSpec, sources: Sequence[Source]) -> RunSpec:
    """Return a spec that names the labels of its rows, where these are few: of many a run finds them.

    Raises:
        DataError: as the run would.
    """
    from nbtune.data.prepare.labels import with_labels

    few = METHODS[spec.method].names_labels and all(len(source.rows) <= _FEW for source in sources)
    return with_labels(spec, sources) if few else spec


def _measured(sources: Sequence[Source], tokenizer: Any, spec: RunSpec, *, one_weight: bool) -> DataFacts:
    """Return what a sample of the rows says of them.

    Raises:
        DataError: they cannot be read; or all are looked at, and nothing of them would be trained.
    """
    from nbtune.data.prepare.measure import SAMPLE, measure

    measured = measure(sources, tokenizer, spec, one_weight=one_weight)
    method, counts = METHODS[spec.method], [len(source.rows) for source in sources if source.role == "train"]
    if method.by_tokens and not method.online and max(counts, default=0) <= SAMPLE:
        refuse_untrained(measured, sum(counts))
    return measured


def spread_out(plan: Plan, facts: ModelFacts, device: DeviceFacts, gpus: int) -> Plan:
    """Return a plan of several GPUs whose links are known with what a step costs on them; any other as it is."""
    if plan.gpus == 1 or not device.peer:
        return plan
    found = spread(plan, facts, device, Links.of(device, gpus))
    return plan.model_copy(update={"spread": found, "seconds": found.seconds * plan.total_steps})


def _with_more(
    error: PlanError, spec: RunSpec, facts: ModelFacts, measured: Any, device: DeviceFacts, gpus: int
) -> PlanError:
    """Return the error with the least number of such machines that would do, where there is one."""
    if (device.nodes == 1 and gpus == 1) or not device.peer or "does not fit" not in str(error):
        return error
    for times in _MORE:
        try:
            plan = make_plan(spec, facts, measured, device, devices=gpus * device.nodes * times)
        except PlanError:
            continue
        what = f"take {device.nodes * times} such machines (`--nodes {device.nodes * times}`"
        fix = f"{what}: {plan.peak_bytes / 2**30:.1f} GiB on each GPU), or {error.fix}"
        return PlanError(error.cause, place=error.place, fix=fix)
    return error


def _devices(spec: RunSpec, where: DeviceFacts | None) -> tuple[DeviceFacts, int]:
    """Return what a run trains on, here or on machines that are not here, and how many of a machine."""
    if where is not None:
        asked = "all" if where.nodes > 1 and spec.gpus == 1 else spec.gpus
        return where.capped(**spec.memory.model_dump()), machine.shared_among(where, asked, spec.device)
    if spec.cluster.used:  # its machines are taken to be like this one
        here = machine.describe(machine.pick(spec.device), rates=True, **spec.memory.model_dump())
        return objects.credited(here, spec), spec.cluster.most
    chosen = machine.choose_cards(spec.gpus, spec.device)
    found = machine.pick(spec.device, chosen[0] if isinstance(spec.gpus, tuple) else None)
    return objects.credited(machine.describe(found, rates=True, **spec.memory.model_dump()), spec), len(chosen)
