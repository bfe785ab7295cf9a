"""The ranks of adapters that vLLM serves; imports nothing heavy."""

SERVED_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what its `max_lora_rank` accepts
MAX_RANK = SERVED_RANKS[-1]


def served_rank(rank: int) -> int:
    """The smallest rank that vLLM serves and that holds `rank`, or else the largest."""
    return next((served for served in SERVED_RANKS if rank <= served), MAX_RANK)
