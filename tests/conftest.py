"""Fixtures shared by all tests: the real model, the local data mirror, one thread a process."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of SmolLM2-135M, a real Llama-architecture model in float32."""
    from utils.config import ModelConfig
    from utils.models import resolve_model

    return resolve_model(ModelConfig(name="smollm2"))


@pytest.fixture(scope="session")
def mirror() -> Path:
    """A local mirror of the upstream data sets (ASTRA_DATA, or ../shared/data); skips where there is none."""
    folder = Path(os.environ.get("ASTRA_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "gsm8k").is_dir():
        pytest.skip("no data mirror: set ASTRA_DATA")
    return folder
