"""`ray up` reads ray_config.yaml with a schema that refuses what it does not know."""

from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

CONFIG = Path(__file__).parents[2] / "ray_config.yaml"


@pytest.fixture
def config():
    return yaml.safe_load(CONFIG.read_text(encoding="utf-8"))


def test_rays_own_check_accepts_the_file(config):
    validate_config(prepare_config(config))


def test_the_check_would_notice_a_section_of_our_own(config):
    with pytest.raises(Exception, match="augray"):
        validate_config(prepare_config(config | {"augray": {}}))


def test_what_the_schema_does_not_check_is_there(config):
    assert config["cluster_name"] == "augray"
    assert set(config["provider"]) == {"type", "head_ip", "worker_ips"}
    assert config["min_workers"] == config["max_workers"] == len(config["provider"]["worker_ips"])


def test_every_node_demands_the_token(config):
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        start = next(command for command in commands if "ray start" in command)
        assert "RAY_AUTH_MODE=token" in start
        assert start.index("activate") < start.index("ray start")  # jobs run the python that `ray start` finds


def test_files_it_copies_from_the_project_exist(config):
    sources = [source for source in config["file_mounts"].values() if not source.startswith("~")]
    assert sources
    assert all((CONFIG.parent / source).is_file() for source in sources)
