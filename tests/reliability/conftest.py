"""One finished experiment for all: made once, with secrets in the environment; tests leave it as it was."""

import pytest

from benchmarks.damage import make_finished

SECRETS = {
    "HF_TOKEN": "hf_YcQwErTyUiOp",
    "WANDB_API_KEY": "0f1e2d3c4b5a69788796",
    "AWS_SECRET_ACCESS_KEY": "k/9sVz+Qe",
}


@pytest.fixture(scope="session")
def finished(tmp_path_factory, smollm2):
    """Its config, and the file of that."""
    with pytest.MonkeyPatch.context() as patched:
        for name, value in SECRETS.items():
            patched.setenv(name, value)
        yield make_finished(tmp_path_factory.mktemp("finished"))


@pytest.fixture
def experiment(finished):
    return finished[0]
