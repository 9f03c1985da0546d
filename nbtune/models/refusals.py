"""What is said where a model cannot be loaded: whose fault it is, and what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

from nbtune.errors import NbtuneError, PlanError, SpecError
from nbtune.untrusted import shortened

_KERNELS = {"triton", "nbtune_kernels", "bitsandbytes"}  # what computes while a model is loaded, and compiles for that


@contextmanager
def refusing(model: str) -> Iterator[None]:
    """Say that a model cannot be loaded where transformers cannot make it: what it raises of damaged files is of any
    kind.

    Memory that is not there, and what nbtune itself said, stay what they are.

    Raises:
        SpecError: it is no causal language model, or damaged.
        PlanError: a kernel, its compiler or the GPU's driver failed.
    """
    import torch

    try:
        yield
    except (NbtuneError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if (cause := _failed_on_the_machine(error)) is not None:
            raise PlanError(
                f"{model} could not be loaded, since this machine failed at it: {first_line(cause)}",
                fix="The model is not at fault: bring torch, triton and the GPU's driver up to date (`%nbtune doctor` "
                "says which are here). `adapter: lora` with `accelerate: false` needs no kernels of nbtune's.",
            ) from error
        raise SpecError(
            f"{model} cannot be loaded: {first_line(error)}", fix="Name a causal language model."
        ) from error


def first_line(error: BaseException) -> str:
    """Return what an error says first, in at most 200 letters."""
    said = getattr(error, "error_message", None) or (error.args[0] if error.args else error)  # of Triton's compiler
    lines = str(said).strip().splitlines()
    first = " ".join(line.strip() for line in lines[:2]) if lines and lines[0].endswith(":") else "".join(lines[:1])
    return shortened(first, 200) if first else type(error).__name__


def _failed_on_the_machine(error: BaseException) -> BaseException | None:
    """Return the error, or the one that it came of, that a kernel, its compiler or a driver raised; None: none did."""
    import torch

    seen: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in seen:
        if isinstance(at, torch.AcceleratorError) or _raised_in(at) in _KERNELS:
            return at
        seen.append(at)
        at = at.__cause__ or at.__context__
    return None


def _raised_in(error: BaseException) -> str:
    """Return the package whose code an error was raised in."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
