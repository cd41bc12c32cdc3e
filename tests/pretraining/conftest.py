"""Two drives, filmed once."""

from __future__ import annotations

import pytest

from pretraining.footage import HELD_OUT, Footage, film


@pytest.fixture(scope="session")
def footage() -> tuple[Footage, Footage]:
    """Held out, of two towns, at both sizes of image."""
    return film(0, HELD_OUT), film(5, HELD_OUT)
