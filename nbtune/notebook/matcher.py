"""What asks `completion`: a matcher in the completer of this IPython, whichever it is.

From 8.6 on IPython hands a matcher all of the cell. Before that (Colab has 7.34) it hands over one word; the rest of
the cursor's line is in the completer, and the rest of the cell in the request that the kernel is answering. There
other matchers' words come along, since none can be told to keep silent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nbtune.notebook.completion import Asked, matches

try:
    from IPython.core.completer import SimpleCompletion, context_matcher
except ImportError:
    context_matcher = None

_MATCHER = "_nbtune_matcher"


def register(shell: Any) -> None:
    """Add the matcher to the shell's completer."""
    match = _of_words(shell) if context_matcher is None else _of_cells(shell)
    setattr(shell, _MATCHER, match)
    shell.Completer.custom_matchers.append(match)


def unregister(shell: Any) -> None:
    """Take it away."""
    match = shell.__dict__.pop(_MATCHER, None)
    if match in shell.Completer.custom_matchers:
        shell.Completer.custom_matchers.remove(match)


def _of_cells(shell: Any) -> Callable[[Any], Any]:
    @context_matcher(identifier="nbtune", priority=100)  # type: ignore[untyped-decorator]
    def match(context: Any) -> dict[str, Any]:
        request = Asked(context.full_text, context.text_until_cursor, context.cursor_line, context.token)
        answer = matches(request, shell.user_ns)
        if answer is None:
            return {"completions": [], "suppress": False}
        fragment, words = answer
        return {
            "completions": [SimpleCompletion(word, type="nbtune") for word in words],
            "matched_fragment": fragment,
            "suppress": True,
            "ordered": True,
        }

    return match


def _of_words(shell: Any) -> Callable[[str], list[str]]:
    def match(token: str) -> list[str]:
        line = shell.Completer.line_buffer
        text, above = _request(shell, line)
        answer = matches(Asked(text, shell.Completer.text_until_cursor, above, token), shell.user_ns)
        if answer is None:
            return []
        fragment, words = answer
        kept = token[: len(token) - len(fragment)]  # all of the token is replaced
        return [kept + word for word in words]

    return match


def _request(shell: Any, line: str) -> tuple[str, int]:
    """Return all of the cell in which `line` is being completed, and how many lines stand above that one."""
    kernel: Any = getattr(shell, "kernel", None)
    parent = (kernel.get_parent("shell") or {}) if hasattr(kernel, "get_parent") else {}
    if parent.get("header", {}).get("msg_type") == "complete_request":
        content = parent["content"]
        above = content["code"][: content["cursor_pos"]].count("\n")
        if content["code"].split("\n")[above] == line:
            return content["code"], above
    return line, 0
