"""A Plotly figure of a run's history, for `run.figure()`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from nbtune.store.run_reader import RunReader

COLOURS = {"loss": "#0072B2", "eval": "#D55E00", "rate": "#007A5A"}  # Okabe-Ito (the green darkened for contrast)


def smooth(values: Any, weight: float = 0.8) -> Any:
    """Return a running mean without a lag at the start: `weight` of what was there survives a step; NaN is left out."""
    import numpy as np
    import pandas as pd

    series = pd.Series(np.asarray(values, dtype=float))
    return series.ewm(alpha=1 - weight, adjust=True, ignore_na=True).mean().to_numpy()


def run_figure(run: RunReader) -> go.Figure:
    """Return loss (raw and smoothed), held-out loss, and below them the learning rate, over steps.

    Args:
        run: the run.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    history = run.history.reset_index()
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.75, 0.25], vertical_spacing=0.06)
    step = history["step"]
    blue, thin = COLOURS["loss"], {"color": COLOURS["loss"], "width": 1}
    figure.add_trace(go.Scatter(x=step, y=history["loss"], name="loss", line=thin, opacity=0.4), row=1, col=1)
    smoothed = smooth(history["loss"])
    figure.add_trace(go.Scatter(x=step, y=smoothed, name="smoothed", line={"color": blue, "width": 2.5}), row=1, col=1)
    held_out = history.dropna(subset=["eval_loss"]) if "eval_loss" in history else history.iloc[:0]
    if len(held_out):
        orange = {"color": COLOURS["eval"], "dash": "dot"}
        points = go.Scatter(
            x=held_out["step"], y=held_out["eval_loss"], name="held-out", mode="lines+markers", line=orange
        )
        points.marker.symbol = "diamond"
        figure.add_trace(points, row=1, col=1)
    rate = go.Scatter(x=step, y=history["learning_rate"], name="learning rate", line={"color": COLOURS["rate"]})
    figure.add_trace(rate, row=2, col=1)
    figure.update_layout(title=f"Run {run.name}", hovermode="x unified", template="plotly_white")
    figure.update_yaxes(title_text="loss", row=1, col=1)
    figure.update_yaxes(title_text="rate", row=2, col=1)
    figure.update_xaxes(title_text="step", row=2, col=1)
    return figure
