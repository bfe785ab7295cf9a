"""The small model of the evaluation's tests."""

import pytest

from tests.eval.engine_fixtures import save_adapter, tiny_llama


@pytest.fixture(scope="session")
def tiny(smollm2, tmp_path_factory):
    """A random two-layer Llama with SmolLM2's tokenizer; beside it `adapter1` and `adapter2`."""
    folder = tiny_llama(tmp_path_factory.mktemp("tiny") / "model", tokenizer=smollm2)
    for seed in (1, 2):
        save_adapter(folder, folder.parent / f"adapter{seed}", 4, seed=seed)
    return folder
