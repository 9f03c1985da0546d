"""How a template becomes Python that asks before it makes something large: jinja2's generator, with our calls in it."""

from __future__ import annotations

from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, operators


class BoundedGenerator(CodeGenerator):
    """Writes calls of our own as such: those of a template go through the sandbox, which takes its time."""

    def visit_Call(self, node: Any, frame: Any, forward_caller: bool = False) -> None:
        if isinstance(node.node, nodes.EnvironmentAttribute):
            self.write("environment.step()")
        elif isinstance(node.node, nodes.ExtensionAttribute) and forward_caller:
            self.visit(node.node, frame)
            self.write("(caller=caller)")
        else:
            super().visit_Call(node, frame, forward_caller=forward_caller)

    def visit_Add(self, node: Any, frame: Any) -> None:
        """Write `a + b + c` as one call."""
        values = [node.right]
        while isinstance(node.left, nodes.Add):
            node = node.left
            values.append(node.right)
        self.write("environment.add((")
        for value in (node.left, *reversed(values)):
            self.visit(value, frame)
            self.write(", ")
        self.write("))")

    def visit_Concat(self, node: Any, frame: Any) -> None:
        """Write `a ~ b` through the environment's `concat`, as all other joining is."""
        self.write("concat((")
        for argument in node.nodes:
            self.write("environment.text(")
            self.visit(argument, frame)
            self.write("), ")
        self.write("))")

    def visit_Compare(self, node: nodes.Compare, frame: Any) -> None:
        """Write a comparison; lists with lists are asked for their size before."""
        values = [node.expr, *(operand.expr for operand in node.ops)]
        if any(map(_is_plain, values)):
            super().visit_Compare(node, frame)
            return
        self.write("(environment.expand(")
        self.visit(node.expr, frame)
        for operand in node.ops:
            self.write(f") {operators[operand.op]} environment.expand(")
            self.visit(operand.expr, frame)
        self.write("))")

    def visit_Getitem(self, node: nodes.Getitem, frame: Any) -> None:
        """Write `a[i]`; a slice is counted, too."""
        slice_of_it = isinstance(node.arg, nodes.Slice)
        self.write("environment.made(" if slice_of_it else "(")
        super().visit_Getitem(node, frame)
        self.write(")")

    def visit_List(self, node: nodes.List, frame: Any) -> None:
        """Write `[a, b]`, which is counted."""
        self.write("environment.made(")
        super().visit_List(node, frame)
        self.write(")")

    def visit_Tuple(self, node: nodes.Tuple, frame: Any) -> None:
        """Write `(a, b)` as a list is; where names are set it is no value."""
        is_value = node.ctx == "load"
        self.write("environment.made(" if is_value else "")
        super().visit_Tuple(node, frame)
        self.write(")" if is_value else "")

    def visit_Dict(self, node: nodes.Dict, frame: Any) -> None:
        """Write `{a: b}` as a list is; of a key that is computed its size is asked."""
        self.write("environment.made({")
        for item in node.items:
            self.write("" if _is_plain(item.key) else "environment.expand(")
            self.visit(item.key, frame)
            self.write(": " if _is_plain(item.key) else "): ")
            self.visit(item.value, frame)
            self.write(", ")
        self.write("})")

    def _output_child_pre(self, node: nodes.Expr, frame: Any, finalize: Any) -> None:
        escaped = frame.eval_ctx.volatile or frame.eval_ctx.autoescape
        self.write("environment.escaped(context, " if escaped else "environment.text(")
        self.write(finalize.src or "")


def _is_plain(node: nodes.Node) -> bool:
    """Return whether a value is written where it stands, with no other in it."""
    return isinstance(node, nodes.Const | nodes.TemplateData)
