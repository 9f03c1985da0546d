"""What spec, form and errors say of the methods that there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from itertools import groupby

from nbtune.methods._method import Method


def how_they_learn(methods: Iterable[Method]) -> str:
    """Return a sentence on all methods, those alike together: "`sft`: imitate the answers; `dpo`, `ipo`: prefer …".

    >>> nbtune.methods.how_they_learn([nbtune.methods.METHODS["sft"], nbtune.methods.METHODS["ipo"]]).split(" (")[0]
    'How it learns. `sft`: imitate the answers; `ipo`: prefer the better of two answers'
    """
    sentences = []
    for (sentence, columns), alike in groupby(methods, key=lambda method: (method.sentence, method.columns)):
        rows = f" (rows with {columns})" if columns else ""
        sentences.append(f"{', '.join(f'`{method.name}`' for method in alike)}: {sentence}{rows}")
    return f"How it learns. {'; '.join(sentences)}."


def what_beta_is(methods: Collection[Method]) -> str:
    """Return a sentence on `beta`: which methods have none, and what it is where a spec leaves it out.

    >>> nbtune.methods.what_beta_is([nbtune.methods.METHODS["sft"], nbtune.methods.METHODS["dpo"]])
    'How strongly preferences pull (not with `sft`); unset: 0.1.'
    """
    without, values = [], {}
    for method in methods:
        if (beta := method.options.get("beta")) is None:
            without.append(f"`{method.name}`")
        else:
            values[method.name] = beta
    usual = Counter(values.values()).most_common(1)[0][0]
    others = "".join(f", for `{name}` {beta:g}" for name, beta in values.items() if beta != usual)
    online = " and ".join(f"`{method.name}`" for method in methods if method.online)
    penalty = f"; of {online} what leaving the base costs, 0: nothing" if online else ""
    return f"How strongly preferences pull (not with {', '.join(without)}){penalty}; unset: {usual:g}{others}."
