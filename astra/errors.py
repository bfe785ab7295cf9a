"""The one exception this library raises for something its caller can put right."""


class AstraError(ValueError):
    """A request that cannot be met, told in one line that names the layer, file or value at fault."""
