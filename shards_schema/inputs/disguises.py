"""Files that stand where data should, as downloads leave them: told by what they are, not by what a parser says."""

from __future__ import annotations


def disguise(data: bytes) -> str:
    """What a file that could not be parsed is instead, with what to do; "" where that cannot be told."""
    if not data:
        return "the file is empty: fetch it again"
    if data.startswith(b"version https://git-lfs"):
        return "it is a git-lfs pointer, not the file itself: run `git lfs pull`"
    if data[:256].lstrip().lower().startswith((b"<!doctype html", b"<html", b"<?xml")):
        return "it is a web page or a server's message, which a download has saved in its place: fetch it again"
    return ""
