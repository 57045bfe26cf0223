"""Equations as MathML, which browsers draw themselves: no script, no font, no network."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx


def _visit_inline(writer: Any, node: nodes.math) -> None:
    writer.body.append(convert(node.astext()))
    raise nodes.SkipNode


def _visit_block(writer: Any, node: nodes.math_block) -> None:
    number = f'<span class="eqno">({node["number"]})</span>' if node.get("number") else ""
    anchor = f' id="{node["ids"][0]}"' if node.get("ids") else ""
    writer.body.append(f'<div class="mathml-block"{anchor}>{number}{convert(node.astext(), display="block")}</div>\n')
    raise nodes.SkipNode


def _depart(writer: Any, node: nodes.Element) -> None:
    """Nothing is open: visiting skips the node."""


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the renderer under the name "mathml"."""
    app.add_html_math_renderer("mathml", (_visit_inline, _depart), (_visit_block, _depart))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
