"""Ask an autograd graph what a tensor depends on, and by which ways."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

Node = Any
"""A node of the autograd graph: `tensor.grad_fn`."""


def leaves(outputs: Iterable[Tensor]) -> set[int]:
    """Return the ids of the leaf tensors that the outputs depend on."""
    return leaves_of(tensor.grad_fn for tensor in outputs)


def leaves_of(nodes: Iterable[Node]) -> set[int]:
    """Return the ids of the leaf tensors that the results of `nodes` depend on."""
    return {id(node.variable) for node in _order(nodes) if hasattr(node, "variable")}


def behind(nodes: Iterable[Node]) -> set[Node]:
    """Return all nodes that the results of `nodes` depend on, with themselves."""
    return set(_order(nodes))


def _order(nodes: Iterable[Node]) -> list[Node]:
    """Return all nodes that the results of `nodes` depend on, with themselves, each after those it depends on."""
    done: dict[Node, None] = {}
    stack = [(node, False) for node in nodes if node is not None]
    opened: set[Node] = set()
    while stack:
        node, complete = stack.pop()
        if complete:
            done.setdefault(node)
        elif node not in opened:
            opened.add(node)
            stack.append((node, True))
            stack.extend((parent, False) for parent, _ in node.next_functions if parent is not None)
    return list(done)


class Dataflow:
    """The autograd graph behind several results.

    Args:
        nodes: of the results.
        source: id of the leaf that is the network's input.
    """

    def __init__(self, nodes: Iterable[Node], source: int) -> None:
        self.order = _order(nodes)
        self.source = source
        self._ways: dict[Node, int] = {}  # from the input to each node
        for node in self.order:
            if hasattr(node, "variable"):
                self._ways[node] = int(id(node.variable) == source)
            else:
                self._ways[node] = sum(self._ways[parent] for parent, _ in node.next_functions if parent is not None)

    def from_source(self, nodes: Iterable[Node]) -> set[Node]:
        """Return those of the nodes that depend on the network's input."""
        return {node for node in nodes if self._ways.get(node)}

    def on_every_way(self, target: Node) -> set[Node]:
        """Return the nodes that every way from the input to `target` passes, with itself; empty if none leads there."""
        total = self._ways.get(target, 0)
        if not total:
            return set()
        onward = {target: 1}  # ways from each node to the target
        found = set()
        for node in reversed(self.order):
            ways = onward.get(node)
            if ways is None:
                continue
            if ways * self._ways[node] == total:
                found.add(node)
            for parent, _ in node.next_functions:
                if parent is not None and self._ways[parent]:
                    onward[parent] = onward.get(parent, 0) + ways
        return found

    def follows_from(self, target: Node, source: Node) -> bool:
        """Return whether `target` is computed from `source` alone: by no parameter, and from nothing before it."""
        seen = {source}
        stack = [target]
        while stack:
            node = stack.pop()
            if node is None or node in seen:
                continue
            if hasattr(node, "variable"):
                return False
            seen.add(node)
            stack.extend(parent for parent, _ in node.next_functions)
        return True

    def trained(self) -> set[Node]:
        """Return the nodes that depend on another leaf than the network's input."""
        values = {node: 1 for node in self.order if hasattr(node, "variable") and id(node.variable) != self.source}
        return {node for node, value in self.largest(values).items() if value}

    def largest(self, values: Mapping[Node, int]) -> dict[Node, int]:
        """Return for each node the largest value among those of itself and of what it depends on."""
        found: dict[Node, int] = {}
        for node in self.order:
            below = [found[parent] for parent, _ in node.next_functions if parent is not None]
            found[node] = max([values.get(node, 0), *below])
        return found
