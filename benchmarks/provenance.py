"""What a benchmark's figures were measured with: a part of every JSON object that one prints."""

import os
import platform
import re
import sys
from typing import Any

import torch

from utils.runs import commit


def provenance(model: str, data: str) -> dict[str, Any]:
    """Return command, commit, machine, model, data and PyTorch's version; paths by their last part only."""
    name, *words = (re.sub("[^=]*/", "", word) for word in sys.argv)
    cpu = f"{len(os.sched_getaffinity(0))}-core {torch.backends.cpu.get_cpu_capability()} {platform.machine()} CPU"
    return {
        "command": " ".join(["python", f"benchmarks/{name}", *words]),
        "commit": commit(),
        "machine": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu,
        "load_average": os.getloadavg()[0],
        "model": model,
        "data": data,
        "torch": torch.__version__,
    }
