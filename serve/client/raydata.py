"""A service's images as a Ray dataset: its read tasks ask the service, each for a range of addresses of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray.data
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from cluster.errors import UserError
from serve.client.answers import find_model
from serve.client.requests import Classes, Order, names_of
from serve.client.retry import Retry
from serve.client.sync import Client
from vaegan import shards

if TYPE_CHECKING:
    from ray.data.context import DataContext

BYTES_BESIDE_PIXELS = 200
"""Of one row, roughly: its address twice, its labels and numbers."""


def read_service(
    url: str,
    model: str,
    counts: Mapping[Classes, int],
    *,
    seed: int,
    start: int = 0,
    version: str | None = None,
    latent: str = "prior",
    truncation: float = 1.0,
    api_key: str | None = None,
    retry: Retry | None = None,
    timeout_s: float = 300.0,
    concurrency: int | None = None,
    override_num_blocks: int | None = None,
) -> ray.data.Dataset:
    """Images of a service as a dataset with the columns of `vaegan.shards.schema`, fetched as it is consumed.

    The same arguments give the same rows, those that `vaegan.sample` would write; how they are spread over blocks is
    Ray's choice, and so is their order unless `DataContext.execution_options.preserve_order` is set.

    Args:
        counts: images of each class, {"normal": 1000}; a tuple of classes for co-occurring findings, () for a model
            without classes. Those of a class have indices start, start + 1, …
        version: the latest, looked up once, now, where it is None.
        api_key: travels to the tasks with them; the workers' own AUGRAY_API_KEY is used where it is None.
        concurrency: requests at a time; the service turns away more than it takes, and they wait.
        override_num_blocks: how many tasks the images are divided among.

    Raises:
        ServiceError: the service can't be asked.
        UserError: no such model, or a count of less than 1.
    """
    client = dict(url=url, api_key=api_key, retry=retry, timeout_s=timeout_s)
    with Client(**client) as asking:  # type: ignore[arg-type]
        about = find_model(asking.models(), model, version)
    orders = [
        Order(
            model=model, classes=names_of(classes), count=count, seed=seed, start=start, version=str(about["version"]),
            latent=latent, truncation=truncation,
        )
        for classes, count in counts.items()
    ]  # fmt: skip
    if not orders:
        raise UserError("counts names no classes, expected some; for a model without classes write {(): 1000}")
    schema = shards.schema(
        task=about["task"], classes=about["classes"], height=about["size"], width=about["size"],
        channels=about["channels"],
    )  # fmt: skip
    source = ServiceDatasource(orders, schema, client)
    return ray.data.read_datasource(source, concurrency=concurrency, override_num_blocks=override_num_blocks)


class ServiceDatasource(Datasource):
    """Orders to one service, divided into read tasks of about equal size.

    Args:
        orders: what to ask for, with the version of the model.
        schema: of the rows.
        client: arguments of `Client`.
    """

    def __init__(self, orders: list[Order], schema: pa.Schema, client: Mapping[str, Any]) -> None:
        super().__init__()
        self._orders, self._schema, self._client = orders, schema, dict(client)
        self._bytes_per_row = schema.field("image").type.byte_width + BYTES_BESIDE_PIXELS

    def estimate_inmemory_data_size(self) -> int:
        return sum(order.count for order in self._orders) * self._bytes_per_row

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        total = sum(order.count for order in self._orders)
        return [
            ReadTask(
                partial(_read, pieces, self._client),
                BlockMetadata(
                    num_rows=(rows := sum(order.count for order in pieces)),
                    size_bytes=rows * self._bytes_per_row,
                    exec_stats=None,
                    input_files=None,
                ),
                schema=self._schema,
                per_task_row_limit=per_task_row_limit,
            )
            for pieces in divide(self._orders, max(1, min(parallelism, total)))
        ]


def divide(orders: list[Order], num_tasks: int) -> list[list[Order]]:
    """Orders cut into `num_tasks` lists of as equal numbers of images as can be, in their order."""
    total = sum(order.count for order in orders)
    tasks = []
    for task in range(num_tasks):
        first, end = (total * edge // num_tasks for edge in (task, task + 1))
        pieces, at = [], 0
        for order in orders:
            low, high = max(first, at), min(end, at + order.count)
            if low < high:
                pieces.append(replace(order, start=order.start + low - at, count=high - low))
            at += order.count
        tasks.append(pieces)
    return tasks


def _read(orders: list[Order], client: Mapping[str, Any]) -> Iterator[pa.Table]:
    with Client(**client) as asking:
        for order in orders:
            yield from asking.tables(
                order.model, order.classes, count=order.count, seed=order.seed, start=order.start,
                version=order.version, latent=order.latent, truncation=order.truncation,
            )  # fmt: skip
