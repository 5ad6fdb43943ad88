"""The catalogue: which models can be fetched by name, which are here, and what a model file holds."""

from __future__ import annotations

from ladderlm.models.fetch import DEFAULT_MODEL, pull

__all__ = ["DEFAULT_MODEL", "pull"]
