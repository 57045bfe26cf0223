"""Sound things made unsound: bytes and trees of values with parts changed."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import strategies as st

_CHOSEN = [
    *(None, True, -1, 0, 1, 2**31, 2**63, 10**400, -0.5, 1e308, float("nan"), float("inf")),
    *("", " ", "a\0b", "x" * 300, "../x", "/etc/hostname", "~", "\udcff", "1", "nan"),
    *([], {}, [[]], [None], {"a": None}, {"size": [1, 1]}, [1, 2, 3], [0] * 7, [[1, 2, 3, 4, 5, "6"]]),
    *({"counts": [], "size": [8, 8]}, {"counts": "q", "size": [8, 8]}),
]
JUNK = st.one_of(st.sampled_from(_CHOSEN), st.integers(-(2**40), 2**40), st.floats(), st.text(max_size=8))


def places(tree: Any) -> list[tuple[Any, ...]]:
    """The paths of all values in a tree, its root the first."""
    found: list[tuple[Any, ...]] = [()]
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        found += [(key, *rest) for rest in places(value)]
    return found


@st.composite
def mutated_tree(draw: st.DrawFn, trees: Any, most: int = 3) -> Any:
    """A tree with up to ``most`` values replaced, removed, doubled or exchanged."""
    tree = copy.deepcopy(draw(trees))
    for _ in range(draw(st.integers(0, most))):
        known = places(tree)
        path = known[draw(st.integers(0, len(known) - 1))]
        if not path:
            if draw(st.integers(0, 20)) == 0:
                return draw(JUNK)
            continue
        parent = tree
        for key in path[:-1]:
            parent = parent[key]
        _change(draw, tree, parent, path[-1])
    return tree


def _change(draw: st.DrawFn, tree: Any, parent: Any, key: Any) -> None:
    action = draw(st.sampled_from(["junk", "junk", "junk", "remove", "double", "exchange", "add"]))
    if action == "junk":
        parent[key] = draw(JUNK)
    elif action == "remove":
        del parent[key]
    elif action == "double" and isinstance(parent, list):
        parent.append(copy.deepcopy(parent[key]))
    elif action == "exchange":
        known = places(tree)
        other = tree
        for step in known[draw(st.integers(0, len(known) - 1))]:
            other = other[step]
        parent[key] = copy.deepcopy(other)
    elif isinstance(parent[key], dict):
        parent[key][draw(st.text(max_size=5))] = draw(JUNK)


@st.composite
def mutated_bytes(draw: st.DrawFn, bases: Any) -> bytes:
    """Bytes with bits flipped, parts cut out, doubled, overwritten or put in."""
    data = bytearray(draw(bases))
    for _ in range(draw(st.integers(0, 3))):
        if not data:
            break
        start = draw(st.integers(0, len(data) - 1))
        length = draw(st.sampled_from([1, 1, 2, 4, 8, 64]))
        action = draw(st.sampled_from(["flip", "flip", "flip", "cut_end", "cut_out", "fill", "put_in", "double"]))
        if action == "flip":
            data[start] ^= 1 << draw(st.integers(0, 7))
        elif action == "cut_end":
            del data[start:]
        elif action == "cut_out":
            del data[start : start + length]
        elif action == "fill":
            data[start : start + length] = bytes([draw(st.sampled_from([0, 0x7F, 0x80, 0xFF]))]) * length
        elif action == "put_in":
            data[start:start] = draw(st.binary(max_size=16))
        else:
            data[start:start] = data[start : start + length]
    return bytes(data)
