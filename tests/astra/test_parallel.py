"""Two processes: the sums of both, vectors with the first, and errors of one that reach the other."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn

from astra import AstraError, Calibration, calibrate
from astra.parallel import share


class Routed(nn.Module):
    """Two layers, the second of which only some batches reach."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)])

    def forward(self, x: Tensor, more: bool = False) -> Tensor:
        x = self.layers[0](x)
        return self.layers[1](x) if more else x


def batches() -> list[dict[str, Tensor | bool]]:
    xs = torch.randn(4, 2, 9, 6, generator=torch.Generator().manual_seed(1))
    return [{"x": x, "more": bool(k % 2)} for k, x in enumerate(xs)]


CASES = ("weight", "activation", "all", "nothing")


def work(rank: int, folder: Path) -> None:
    distributed.init_process_group("gloo", f"file://{folder / 'meet'}", rank=rank, world_size=2)
    for case in CASES:
        model, mine = Routed(), batches()[rank::2]  # the second layer is reached by the second process alone
        if case == "weight":
            model.layers[1].weight.data[0, 0] = torch.nan
        elif case == "activation" and rank == 1:
            mine[1]["x"][0, 0] = torch.nan  # type: ignore[index]
        elif case == "nothing" and rank == 0:
            mine = []
        try:
            found = calibrate(model, mine, ["0", "1"], 2)
            assert list(found.layers) == ["layers.0", "layers.1"]
            found.save(folder / f"{case}-{rank}")
        except AstraError as error:
            (folder / f"{case}-{rank}.txt").write_text(str(error))
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    multiprocessing.spawn(work, (folder,), nprocs=2)
    return folder


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("weight", "layer layers.1: NaN or Inf in its weights"),
        ("activation", "layer layers.0: NaN or Inf in its inputs in calibration batch 1 of process 1"),
    ],
)
def test_both_processes_hear_of_an_error(case: str, message: str, folder: Path) -> None:
    assert [(folder / f"{case}-{rank}.txt").read_text() for rank in (0, 1)] == [message, message]


@pytest.mark.parametrize("case", ["all", "nothing"])
def test_sums_are_those_of_all_batches(case: str, folder: Path) -> None:
    assert "with process 0" in (folder / f"{case}-1.txt").read_text()
    both = Calibration.load(folder / f"{case}-0")
    alone = calibrate(Routed(), batches() if case == "all" else batches()[1::2], ["0", "1"], 2)
    for name, info in alone.layers.items():
        assert both.layers[name].tokens == info.tokens
        torch.testing.assert_close(both.eigenvalues(name), alone.eigenvalues(name))


def test_work_is_shared_by_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = {"a": 1.0, "b": 5.0, "c": 2.0, "d": 3.0}
    monkeypatch.setattr("astra.parallel.world_size", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr("astra.parallel.rank", lambda rank=rank: rank)
        shares.append(share(costs))
    assert shares == [["b", "a"], ["d", "c"]]
