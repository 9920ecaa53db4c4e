"""The service as a Ray dataset, in a session of Ray's own."""

from collections import Counter

import pytest

from cluster.config import ClusterConfig
from cluster.errors import UserError
from cluster.session import connect
from vaegan.shards import from_table

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def session():
    with connect(ClusterConfig(address="local", num_cpus=2, num_gpus=0)):
        yield


def test_a_ray_dataset_holds_exactly_the_addresses_and_the_schema_of_shards(session, url, made_up):
    import ray.data

    from serve.client.raydata import read_service

    data = read_service(
        url, "chest", {"normal": 70, ("mass",): 30}, seed=4, start=5, concurrency=2, override_num_blocks=4
    )
    assert data.count() == 100
    tables = list(data.iter_batches(batch_format="pyarrow", batch_size=None))
    expected = Counter({(1, 0, 0, 5 + i): 1 for i in range(70)} | {(0, 0, 1, 5 + i): 1 for i in range(30)})
    found = Counter(address for table in tables for address in made_up.addresses_in(from_table(table).pixels))
    assert found == expected
    assert data.schema().base_schema.equals(tables[0].schema)
    assert isinstance(data, ray.data.Dataset)
    means = data.map_batches(lambda batch: {"n": [len(batch["image"])]}, batch_size=25).sum("n")
    assert means == 100


def test_tasks_share_the_images_evenly(made_up):
    from serve.client.raydata import divide
    from serve.client.requests import Order

    orders = [Order(model="m", classes=(name,), count=count, seed=0, start=3) for name, count in (("a", 7), ("b", 4))]
    tasks = divide(orders, 3)
    assert [[(order.classes[0], order.start, order.count) for order in task] for task in tasks] == [
        [("a", 3, 3)],
        [("a", 6, 4)],
        [("b", 3, 4)],
    ]


def test_an_order_of_nothing_is_refused(url):
    from serve.client.raydata import read_service

    with pytest.raises(UserError, match="names no classes"):
        read_service(url, "chest", {}, seed=0)
