"""Which version of the project this is."""

import subprocess
from pathlib import Path


def commit() -> str | None:
    """Return the project's git commit, with `+` when files differ from it; None outside a checkout."""
    here = Path(__file__).parent
    try:
        run = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12"], cwd=here, capture_output=True, text=True
        )
    except OSError:
        return None
    return run.stdout.strip() or None
