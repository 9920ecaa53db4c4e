"""Which Ray cluster a command uses, and how large one of its own may be."""

from dataclasses import dataclass

from cluster.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Where a command's Ray tasks run."""

    address: str | None = None
    """host:port of a running head, "auto" for the one on this machine, "local" for a cluster of the command's own; \
without it RAY_ADDRESS decides (a submitted job has it), else "local"."""
    num_cpus: int | None = None
    """Cores an own cluster may use; without it, all. A cluster that is joined has the cores it has."""
    num_gpus: int | None = None
    """GPUs an own cluster may use; without it, all. 0 hides them."""

    def __post_init__(self) -> None:
        if self.num_cpus is not None and self.num_cpus < 1:
            raise UserError(f"num_cpus is {self.num_cpus}: expected at least 1; leave it out to use every core")
        if self.num_gpus is not None and self.num_gpus < 0:
            raise UserError(f"num_gpus is {self.num_gpus}: expected 0 or more; leave it out to use every GPU")
