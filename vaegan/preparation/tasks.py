"""Parts decoded by Ray tasks, on however many nodes a cluster has: the Ray edge of preparing."""

from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from cluster.errors import UserError
from vaegan.preparation.decoding import Decoding
from vaegan.preparation.pools import AHEAD, Interrupted, Part, in_order
from vaegan.preparation.spool import decode_part

MAX_RETRIES = 3
"""Of a part whose node or process died; the files it writes have their names only when whole."""


def in_ray_tasks(parts: Iterator[Part], how: Decoding) -> Iterator[int]:
    """Decode and write parts on the cluster that is connected (`cluster.session.connect`); see `pools.Run`.

    Raises:
        UserError: a task can't read or write the files, most likely since its node doesn't see them.
    """
    task: Any = ray.remote(decode_part).options(num_cpus=1, max_retries=MAX_RETRIES)
    settings = ray.put(how)  # once, not with each part
    num_cpus = int(ray.cluster_resources().get("CPU", 1))

    def start(part: Part) -> Callable[[], int]:
        job = task.remote(part.records, settings, part.path.resolve())
        return lambda: _result(job)

    yield from in_order(map(start, parts), AHEAD * num_cpus)


def _result(job: "ray.ObjectRef[Any]") -> int:
    try:
        return int(ray.get(job))
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, UserError):  # Ray's own error has the task's traceback in its text
            raise cause from None
        if isinstance(cause, OSError):
            raise UserError(
                f"a Ray task can't write what it decoded ({cause}): --images and --out must be on a file system that "
                "all nodes see under the same path"
            ) from None
        raise
    except RayError as error:  # its worker or node is gone, and so were those of MAX_RETRIES more
        raise Interrupted(
            f"a Ray task that decodes images ended with its worker ({' '.join(str(error).split())[:200]}): run the "
            "same command again; what is decoded is kept"
        ) from None
