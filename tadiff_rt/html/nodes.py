"""HTML as a tree: every text and attribute is escaped when it is written, whoever wrote it."""

import re
import xml.etree.ElementTree as ET

Node = ET.Element
Child = Node | str

_NOT_HTML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def node(tag: str, *children: Child, **attributes: object) -> Node:
    """An element: `class_` becomes class, `stroke_width` stroke-width."""
    names = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
    element = Node(tag, {name: _text(str(value)) for name, value in names.items()})
    for child in children:
        if isinstance(child, Node):
            element.append(child)
        elif len(element):
            element[-1].tail = (element[-1].tail or "") + _text(child)
        else:
            element.text = (element.text or "") + _text(child)
    return element


def markup(*nodes: Node) -> str:
    """The elements as HTML."""
    return "".join(ET.tostring(part, encoding="unicode", method="html") for part in nodes)


def _text(text: str) -> str:
    """Without the characters that no HTML document may hold."""
    return _NOT_HTML.sub("\ufffd", text)
