"""Files of directions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from landscape_cli.registry.errors import Fault
from landscape_cli.store import surface_files


def test_directions_without_numbers_are_refused(tmp_path: Path) -> None:
    bad = {"x0.w": torch.tensor([1.0, float("nan")], dtype=torch.float64)}
    (tmp_path / "d.safetensors").write_bytes(surface_files.to_bytes(bad, {}))
    with pytest.raises(Fault, match=r"x0\.w holds NaN or Inf"):
        surface_files.read(tmp_path / "d.safetensors", {"w": (2,)}, 1)
