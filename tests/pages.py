"""A page as a browser sees it."""

from __future__ import annotations

from html.parser import HTMLParser


class Page(HTMLParser):
    """Every start tag with its attributes, what a browser would load, the text; tags that do not nest are refused."""

    VOID = frozenset({"meta", "img", "br", "link", "input", "hr"})
    LOADS = frozenset({"src", "href", "xlink:href", "data", "action", "poster"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open

    @property
    def tags(self) -> list[str]:
        return [tag for tag, _ in self.seen]

    @property
    def loads(self) -> list[str]:
        return [value or "" for _, given in self.seen for name, value in given.items() if name in self.LOADS]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert not any(name.startswith("on") for name, _ in attrs)
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
