"""Pages: one file each, which loads nothing. jinja2 escapes all that comes from data; drawings are inline SVG."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline.stores.volume import Volume

_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(template: str, **values: object) -> str:
    """A template of this room, ``folder/name.html``, filled in."""
    return _TEMPLATES.get_template(template).render(values)


def beside(url: str, what: str) -> Path:
    """Where the page ``<name>-<what>.html`` of a dataset goes: beside a local one, else into the working directory."""
    root, name = Volume(url).local_root, url.rstrip("/").rsplit("/", 1)[-1]
    return Path(f"{name}-{what}.html") if root is None else root.with_name(f"{root.name}-{what}.html")


def tag(name: str, *inside: str | Iterable[str], **attributes: object) -> Markup:
    """An element; ``class_`` is `class`, ``stroke_width`` is `stroke-width`; attributes that are None are left out.

    Text and attributes are escaped.
    """
    given = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value is not None}
    written = Markup("").join(Markup(' {}="{}"').format(key, value) for key, value in given.items())
    content = Markup("").join(x for part in inside for x in ([part] if isinstance(part, str) else part))
    return Markup("<{0}{1}>{2}</{0}>").format(name, written, content)
