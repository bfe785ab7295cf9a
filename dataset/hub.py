"""Named data sets on the Hugging Face hub: downloaded once, to its library's cache, and read from there."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dataset.records import Converter, Record, converted
from utils.errors import UserError

TIMEOUT = 10  # seconds to wait for the hub's first answer: its own library tries again for minutes


@dataclass(frozen=True)
class Hub:
    """A split of a data set on the hub.

    Attributes:
        count: Records that it must give; None if not known.
        folder: The only folder of the repository that is downloaded; None for all.
        otherwise: What to set where the hub can't be read.
    """

    repository: str
    convert: Converter
    count: int | None
    configs: tuple[str | None, ...] = (None,)
    split: str = "train"
    folder: str | None = None
    revision: str | None = None
    otherwise: str = "set data.dir to a local mirror"

    def check(self, what: str) -> None:
        """Raise a `UserError` that begins with `what` unless the data is in the cache or the hub answers."""
        from huggingface_hub import HfApi

        if self._cached() is None:
            with self._errors(what):
                HfApi().dataset_info(self.repository, revision=self.revision, timeout=TIMEOUT)

    def snapshot(self, what: str) -> Path:
        """Return the cached copy of the repository, downloaded if need be; the folder's name is the hub's commit."""
        self.check(what)
        with self._errors(what):
            return self._cached() or self._fetch(local_files_only=False)

    def records(self, what: str) -> Iterator[Record]:
        """Yield the split's records.

        Raises:
            UserError: the hub can't be read, or the number of records is not the published one; begins with `what`.
        """
        from datasets import load_dataset

        count, folder = 0, self.snapshot(what)
        for config in self.configs:
            with self._errors(what):
                rows = load_dataset(str(folder), config, data_dir=self.folder, split=self.split)
            places = (f"{self.repository}, {self.split} row {number}" for number in range(1, len(rows) + 1))
            for record in converted(zip(places, rows, strict=True), self.convert, self.repository):
                count += 1
                yield record
        if self.count is not None and count != self.count:
            raise UserError(
                f"{what}: {self.repository} gave {count:,} records and is known to have {self.count:,} ({folder})"
            )

    def _cached(self) -> Path | None:
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            return self._fetch(local_files_only=True)
        except LocalEntryNotFoundError:  # nothing, or not all of it
            return None

    def _fetch(self, local_files_only: bool) -> Path:
        from huggingface_hub import snapshot_download

        files = None if self.folder is None else f"{self.folder}/*"
        folder = snapshot_download(
            self.repository, repo_type="dataset", revision=self.revision, allow_patterns=files,
            local_files_only=local_files_only,
        )  # fmt: skip
        return Path(folder)

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # the hub's libraries raise those of whatever HTTP library they are built on
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise UserError(
                f"{what} comes from {self.repository} on the hub, which can't be read ({reason[:160]}); "
                f"{self.otherwise}, or try again where the hub can be reached"
            ) from error
