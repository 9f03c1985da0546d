"""The notebook's door: `%%finetune`, `%finetune`, `%nbtune`, their completion, and errors without a traceback.

A magic parses, calls one public function of `nbtune`, and shows what came back; it knows nothing of training.
Nothing imports this package but IPython, through ``%load_ext nbtune``.
"""

from __future__ import annotations

from typing import Any


def load(shell: Any) -> None:
    """Register the magics, the completion and the error block in an IPython shell; twice does no harm."""
    from nbtune.engine import launcher
    from nbtune.keepalive import Heartbeat, heart
    from nbtune.notebook import cell_transform, environment, errors, matcher
    from nbtune.notebook.display import say
    from nbtune.notebook.magics import NbtuneMagics
    from nbtune.store.folder import runs_root
    from nbtune.system_report import restart_needed

    unload(shell)
    magics = NbtuneMagics(shell)
    heart.seconds = magics.heartbeat
    magics.observe(lambda change: setattr(heart, "seconds", change.new), "heartbeat")
    shell.register_magics(magics)
    shell.register_magic_function(cell_transform.out_of_place, magic_kind="line", magic_name="%finetune")
    cell_transform.register(shell)
    matcher.register(shell)
    errors.register(shell)
    shell._nbtune_heartbeat = Heartbeat(
        shell, lambda: heart.seconds, needed=launcher.kernel_is_needed, starts=launcher.on_launch
    )
    shell._nbtune_heartbeat.register()
    if told := environment.prepare_colab():
        say(told)
    if told := environment.prepare_kaggle(runs_root(magics.runs_dir)):
        say(told)
    if stale := restart_needed():
        say(f"Restart the kernel once before you train: {'; '.join(stale)}.")


def unload(shell: Any) -> None:
    """Take away what `load` registered; runs go on."""
    from nbtune.notebook import cell_transform, errors, matcher

    for kind, names in {"line": ("finetune", "nbtune", "%finetune"), "cell": ("finetune", "nbtune")}.items():
        for name in names:
            shell.magics_manager.magics[kind].pop(name, None)
    cell_transform.unregister(shell)
    matcher.unregister(shell)
    errors.unregister(shell)
    beating = shell.__dict__.pop("_nbtune_heartbeat", None)
    if beating is not None:
        beating.unregister()
