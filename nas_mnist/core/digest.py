"""One short digest for all frozen models: architectures, search spaces and recipes."""

from __future__ import annotations

import hashlib
import json

from pydantic import BaseModel


def digest(model: BaseModel) -> str:
    """16 hexadecimal digits of the SHA-256 of a model's canonical JSON (sorted keys, every field)."""
    canonical = json.dumps(model.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
