"""Immutable bytes by digest, in a folder or in any fsspec file system."""

from __future__ import annotations

from controller.artifacts.store import ArtifactStore, ArtifactWriter

__all__ = ["ArtifactStore", "ArtifactWriter"]
