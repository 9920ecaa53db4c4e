import http.server
import os
import threading

import pytest

from cluster.config import ClusterConfig
from cluster.errors import UserError
from cluster.session import connect, environment, free_port


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "ray://10.0.0.1:10001", "10.0.0.1", ":6379", "head:port"])
def test_what_is_not_a_heads_address_is_named_before_anything_connects(address):
    with pytest.raises(UserError, match="expected host:port") as raised, connect(ClusterConfig(address=address)):
        pass
    assert address in str(raised.value)


def test_an_address_where_nothing_listens_fails_at_once_with_what_to_do():
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(UserError, match="ray start --head") as raised, connect(ClusterConfig(address=address)):
        pass
    assert address in str(raised.value)


def test_a_strangers_port_is_noticed_at_once_where_ray_would_try_for_minutes():
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as stranger:
        threading.Thread(target=stranger.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{stranger.server_port}"
        with pytest.raises(UserError, match="isn't a Ray head"), connect(ClusterConfig(address=address)):
            pass
        stranger.shutdown()


def test_ray_address_decides_where_the_config_does_not(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "not-an-address")
    with pytest.raises(UserError, match="not-an-address"), connect():
        pass


@pytest.mark.parametrize("wrong", [{"num_cpus": 0}, {"num_gpus": -1}])
def test_impossible_resources_are_refused(wrong):
    with pytest.raises(UserError, match="expected"):
        ClusterConfig(**wrong)


def test_environment_is_put_back_also_after_an_error(monkeypatch):
    monkeypatch.setenv("AUGRAY_TEST_OLD", "before")
    with pytest.raises(RuntimeError), environment(AUGRAY_TEST_OLD="during", AUGRAY_TEST_NEW="during"):  # noqa: PT012
        assert os.environ["AUGRAY_TEST_OLD"] == os.environ["AUGRAY_TEST_NEW"] == "during"
        raise RuntimeError
    assert os.environ["AUGRAY_TEST_OLD"] == "before"
    assert "AUGRAY_TEST_NEW" not in os.environ
