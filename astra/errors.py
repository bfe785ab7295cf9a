"""The one exception this library raises for something its caller can put right, and one of PyTorch's by its names."""


class AstraError(ValueError):
    """A request that cannot be met, told in one line that names the layer, file or value at fault."""


def out_of_memory(error: BaseException) -> bool:
    """Whether memory did not suffice, of a device or main memory; told by names, as nothing heavy is imported here."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return bool(kinds & {"MemoryError", "OutOfMemoryError"}) or "DefaultCPUAllocator" in str(error)
