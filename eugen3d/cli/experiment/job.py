"""What a job is: all that its worker needs to know, wherever that is; quick to import there."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Kind = Literal["given", "train", "distill", "plan", "score"]


@dataclass(frozen=True)
class Conditions:
    """What all jobs of a call have in common."""

    output_dir: Path
    device: str = "cpu"
    threads: int = 1


@dataclass(frozen=True)
class Job:
    """One command, the folder that it works in and what it leaves there; or a run that is there already."""

    scene: str
    group: str
    """Its name without the seed."""
    name: str
    """Its name in its scene."""
    kind: Kind
    command: tuple[str, ...]
    """The command line; that of a training says nothing of the checkpoint to go on from."""
    folder: Path
    """Named after name and fingerprint, so that other settings never meet this one's files."""
    product: Path
    """The run's config.yml, or a plan's or score's JSON file; there when the job is done."""
    fingerprint: str
    """Of everything that the product depends on."""
    threads: int = 1
    device: str = "cpu"
    seed: int | None = None
    """What its command draws from; None for a given run."""
    steps: int = 0
    """A training's."""
    end: Path | None = None
    """The file that a training leaves when it is over, where that is not known by its steps."""
    input: "Job | None" = None
    """The job whose product this one starts from."""
    settings: dict[str, Any] = field(default_factory=dict)
    """The flags of its entry, with the values that the grid gives them."""

    @property
    def key(self) -> tuple[str, str]:
        """Scene and name."""
        return self.scene, self.name
