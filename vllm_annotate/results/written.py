"""The rows of an output: those of its file, or of the files of one that is a folder."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BESIDE = (".failures.jsonl", ".audit.jsonl", ".reviewed.jsonl")  # what commands write beside an output


def written_files(output: Path) -> list[Path]:
    """The file of an output, or those of a folder, by name; none if it is neither."""
    if not output.is_dir():
        return [output] if output.is_file() else []
    return sorted(path for path in output.rglob("*.jsonl") if not path.name.endswith(BESIDE))


@dataclass(frozen=True)
class Written:
    """What an output has now: a run may append meanwhile, and all passes over it read the same."""

    files: list[tuple[Path, int]]  # with their sizes in bytes

    @classmethod
    def of(cls, output: Path) -> "Written":
        """The rows of the output at this path."""
        return cls([(path, path.stat().st_size) for path in written_files(output)])

    def lines(self) -> Iterator[bytes]:
        """Yields all lines."""
        for path, left in self.files:
            with path.open("rb") as file:
                for line in file:
                    left -= len(line)
                    if left < 0:
                        break
                    yield line
