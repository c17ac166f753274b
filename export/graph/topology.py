"""Put a NIR graph in order: nested graphs opened, loops found, sources before targets.

NIR gives no order and no delay to a loop. Here an edge closes a loop when its target stands on every way from the input
to its source (the target dominates the source); such an edge carries the value of one step before. A Delay node of at
least one step needs no help: the loop through it is as long as it says. A loop that is entered at two places leaves open
which edge waits, and a loop of synapses alone has no time in it: both are refused.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx
import nir
import numpy as np

from knarr.export.arguments import as_graph
from knarr.export.errors import ExportError

Edge = tuple[str, str]
MAX_DEPTH = 16
MAX_EDGES = 20_000
NEURONS = (nir.LIF, nir.CubaLIF, nir.LI, nir.CubaLI, nir.IF, nir.I)
LINEARS = (nir.Linear, nir.Affine)
CONVS = (nir.Conv1d, nir.Conv2d)
POOLS = (nir.AvgPool2d, nir.SumPool2d)
ENDS = (nir.Input, nir.Output)
_ROOT = ""
METADATA = {"integration": "forward Euler, synapse first", "reset": "hard reset", "time_unit": "s"}
"""The arithmetic of `step_nir`, as it is written into every graph."""


@dataclass(frozen=True)
class Topology:
    """The order of flat nodes, sources before targets.

    Args:
        order: node names; the input is first.
        sources: node -> names whose value of this step it receives, in the order of the edges.
        looping: node -> names whose value of the step before it receives.
        input, output: names of the two ends.
    """

    order: tuple[str, ...]
    sources: dict[str, tuple[str, ...]]
    looping: dict[str, tuple[str, ...]]
    input: str
    output: str


def inline(
    graph: nir.NIRGraph, prefix: str = "", depth: int = 0
) -> tuple[dict[str, Any], list[Edge]]:
    """Return nodes and edges with every nested graph opened: its nodes become "outer.inner", its ends are bridged.

    Raises:
        ExportError: an edge to a missing node, an edge twice, or a nested graph without exactly one Input and Output.
    """
    if depth > MAX_DEPTH:
        raise ExportError(f"graph: nested more than {MAX_DEPTH} deep; flatten it")
    if prefix == "":
        as_graph(graph)
    if not isinstance(graph.nodes, dict) or not isinstance(graph.edges, list):
        raise ExportError(
            "graph: its nodes are no dictionary or its edges no list; it is no NIR graph"
        )
    if len(graph.edges) > MAX_EDGES:
        raise ExportError(
            f"graph: {len(graph.edges):,} edges, at most {MAX_EDGES:,}; it is no network"
        )
    nodes: dict[str, Any] = {}
    ends: dict[
        str, tuple[str, str]
    ] = {}  # node -> where edges into it and out of it stand once it is opened
    edges: list[Edge] = []
    for name in sorted(graph.nodes):  # the order of a dictionary must not change what a graph means
        node, path = graph.nodes[name], prefix + name
        if isinstance(node, ENDS) and not prefix and "." in name:
            raise ExportError(
                f"node '{name}': a dot in the name of an end stands for a nested graph; rename it"
            )
        if isinstance(node, nir.NIRGraph):
            opened, inner_edges = inline(node, f"{path}.", depth + 1)
            first, last = _ends(node.nodes, f"node '{path}': nested graph with")
            ends[path] = (f"{path}.{first}", f"{path}.{last}")
            edges += inner_edges
        else:
            opened, ends[path] = {path: node}, (path, path)
        for new in opened:
            if new in nodes:
                raise ExportError(
                    f"node '{new}': so is a node inside a nested graph called once it is opened; rename one"
                )
        nodes |= opened
    try:
        pairs = [(str(source), str(target)) for source, target in graph.edges]
    except (TypeError, ValueError) as error:
        raise ExportError(
            f"graph: its edges are not pairs of names ({error}); rewrite them"
        ) from error
    for (source, target), times in Counter(pairs).most_common(1):
        if times > 1:
            raise ExportError(
                f"graph: edge {source} -> {target} stands twice; NIR edges are unique"
            )
    for source, target in pairs:
        for name in (source, target):
            if name not in graph.nodes:
                alone = sorted(set(graph.nodes) - {end for pair in pairs for end in pair})
                meant = f", or name '{alone[0]}', which no edge has" if len(alone) == 1 else ""
                raise ExportError(
                    f"graph: edge {source} -> {target} names '{name}', which is not a node; add it, cut the edge{meant}"
                )
        edges.append((ends[prefix + source][1], ends[prefix + target][0]))
    return nodes, edges


def _ends(nodes: dict[str, Any], where: str) -> list[str]:
    """Return the names of the one Input and the one Output; `where` begins the message about others."""
    found = []
    for kind in ENDS:
        names = [name for name, node in nodes.items() if isinstance(node, kind)]
        if len(names) != 1:
            raise ExportError(f"{where} {len(names)} {kind.__name__} nodes, needs exactly one")
        found += names
    return found


def topology(nodes: dict[str, Any], edges: Sequence[Edge], dt_s: float | None = None) -> Topology:
    """Order flat nodes; see the module's text for what a loop means.

    Args:
        nodes, edges: as `inline` gives them.
        dt_s: time step, seconds; a Delay shorter than one step does not open a loop. None: any positive delay does.

    Raises:
        ExportError: not one Input and one Output at the top, a node that nothing feeds, a loop without a meaning.
    """
    # A nested graph's ends carry a dot and only pass on what they get.
    top = {name: node for name, node in nodes.items() if "." not in name}
    start, end = _ends(top, "graph:")
    fed = {target for _, target in edges}
    if start in fed:
        raise ExportError(
            f"node '{start}': something feeds this Input, which only passes on what is given; cut the edge, or add up "
            "behind it"
        )
    for name in sorted(nodes):
        if name != start and name not in fed:
            raise ExportError(f"node '{name}': nothing feeds it; connect or remove it")
    delays = {
        name
        for name, node in nodes.items()
        if isinstance(node, nir.Delay)
        and np.size(node.delay)
        and bool((np.asarray(node.delay) > (dt_s or 0.0) * 0.5).all())
    }
    stateful = {name for name, node in nodes.items() if isinstance(node, NEURONS)}
    closing = loop_edges(list(nodes), edges, start, stateful, delays)
    forward = [edge for edge in edges if edge not in closing]
    # The value of a Delay at this step is known before what feeds it, so edges into it put nothing in order.
    graph: Any = nx.DiGraph()
    graph.add_nodes_from(nodes)
    graph.add_edges_from(edge for edge in forward if edge[1] not in delays)
    # Ties go by name, so the order of a file's nodes does not matter.
    order = list(nx.lexicographical_topological_sort(graph))
    order.remove(start)
    sources: dict[str, tuple[str, ...]] = dict.fromkeys(nodes, ())
    looping: dict[str, tuple[str, ...]] = dict.fromkeys(nodes, ())
    for source, target in edges:
        where = looping if (source, target) in closing else sources
        where[target] = (*where[target], source)
    return Topology(
        order=(start, *order),
        sources=sources,
        looping=looping,
        input=start,
        output=end,
    )


def loop_edges(
    names: Collection[str],
    edges: Sequence[Edge],
    start: str,
    stateful: Collection[str],
    delays: Collection[str] = (),
) -> set[Edge]:
    """Find the edges that close a loop: their target is on every way from `start` (or a delay) to their source.

    Raises:
        ExportError: a loop without a neuron, or one that is entered at more than one place.
    """
    graph: Any = nx.DiGraph()
    graph.add_nodes_from(names)
    graph.add_edges_from(edge for edge in edges if edge[1] not in delays)
    if nx.is_directed_acyclic_graph(graph):
        return set()
    graph.add_edges_from((_ROOT, name) for name in (start, *delays))
    above: dict[str, str] = nx.immediate_dominators(graph, _ROOT)
    # Climb from the source through its dominators; meeting the target means that the edge leads back.
    closing = set()
    for source, target in edges:
        node = source if target not in delays else _ROOT
        while node != _ROOT and node in above and node != target:
            node = above[node]
        if node == target and node != _ROOT:
            closing.add((source, target))
    graph.remove_edges_from(closing)
    if not nx.is_directed_acyclic_graph(graph):
        loop = sorted({source for source, _ in nx.find_cycle(graph)})
        raise ExportError(
            f"graph: nodes {loop} form a loop that is entered at more than one place or from nowhere, so NIR leaves open "
            "which edge waits one step; put a Delay node into it"
        )
    silent: Any = nx.DiGraph()  # not through the constructor, which warns where pandas is missing
    silent.add_edges_from((s, t) for s, t in edges if s not in stateful and s not in delays)
    if not nx.is_directed_acyclic_graph(silent):
        loop = sorted({source for source, _ in nx.find_cycle(silent)})
        raise ExportError(
            f"graph: nodes {loop} form a cycle without neuron or delay; it has no value at any time, "
            "put a neuron or a Delay into it"
        )
    return closing


def bare_delays(
    names: Collection[str],
    edges: Sequence[Edge],
    delayed: Sequence[Edge],
    start: str,
    stateful: Collection[str],
    end: str,
) -> frozenset[Edge] | None:
    """Return the edges at which a reader of bare edges would wait, or None where `delayed` says otherwise.

    Args:
        names, edges: the network without the delayed edges.
        delayed: edges that carry the value of the step before.
        start, end: names of the ends.
        stateful: names of neurons.
    """
    try:
        own = loop_edges(names, edges, start, stateful)
        found = loop_edges(names, [*edges, *delayed], start, stateful) - own
    except ExportError:
        return None
    arriving, waiting, met = set(), list(delayed), set()
    while waiting:
        source, target = waiting.pop()
        if target in stateful or target == end:
            arriving.add((source, target))
            continue
        if target in met:
            continue
        met.add(target)
        if any(t == target for _, t in edges):
            return None  # it meets something that does not wait
        waiting += [(s, t) for s, t in edges if s == target]
    return frozenset(found) if found and found == arriving else None


def graph_hash(graph: nir.NIRGraph) -> str:
    """Return the SHA-256 of node names, types, parameters and edges; independent of their order and of metadata."""
    nodes, edges = inline(graph)
    digest = hashlib.sha256()
    for name in sorted(nodes):
        node = nodes[name]
        digest.update(f"{name}:{type(node).__name__}".encode())
        for field in sorted(vars(node)):
            value = getattr(node, field)
            if field == "metadata" or callable(value):
                continue
            if isinstance(value, dict):  # input_type and output_type: shapes
                value = [
                    None if shape is None else np.asarray(shape).tolist()
                    for _, shape in sorted(value.items())
                ]
                digest.update(f"{field}={value}".encode())
            elif value is None or isinstance(value, str):
                digest.update(f"{field}={value!r}".encode())
            else:
                # float64 holds every integer and float32 that a file may have, so dtypes do not matter.
                array = np.asarray(value)
                digest.update(
                    f"{field}:{array.shape}".encode()
                    + np.ascontiguousarray(array, dtype=np.float64).tobytes()
                )
    digest.update(repr(sorted(edges)).encode())
    for name in sorted(nodes):
        sources = [source for source, target in edges if target == name]
        if len(sources) > 2:  # a sum of three rounds by its order
            digest.update(repr(sources).encode())
    return digest.hexdigest()


def execution_order(graph: nir.NIRGraph) -> list[str]:
    """List the nodes with every source before its targets, but for edges that close a loop; nested graphs are opened.

    Raises:
        ExportError: an edge names a missing node, or a loop has no meaning.
    """
    return list(topology(*inline(graph)).order)
