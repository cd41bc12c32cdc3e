"""What every config of the project is: a pydantic model that no key gets past."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class StrictModel(BaseModel):
    """Frozen; an unknown key is refused; a field is described by the docstring below it, which ``--help`` prints."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
