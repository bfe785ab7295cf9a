"""Errors that only one of two processes meets reach both, and say whose they are."""

from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing, nn

from astra import AstraError, calibrate


def work(rank: int, folder: Path, case: str) -> None:
    distributed.init_process_group("gloo", f"file://{folder / 'meet'}", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    batches = [{"input": torch.randn(2, 9, 6)} for _ in range(2)]
    if case == "weight":
        model[1].weight.data[0, 0] = torch.nan  # the last layer's product is not computed; the second process's share
    elif rank == 1:
        batches[1]["input"][0, 0] = torch.nan
    try:
        calibrate(model, batches, ["0", "1"], 2)
    except AstraError as error:
        (folder / str(rank)).write_text(str(error))
    distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("weight", "layer 1: NaN or Inf in its weights"),
        ("activation", "layer 0: NaN or Inf in its inputs in calibration batch 1 of process 1"),
    ],
)
def test_both_processes_hear_of_it(case: str, message: str, tmp_path: Path) -> None:
    multiprocessing.spawn(work, (tmp_path, case), nprocs=2)
    assert [(tmp_path / rank).read_text() for rank in ("0", "1")] == [message, message]
