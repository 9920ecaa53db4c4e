"""The command lines, as far as they go before Ray starts."""

import dataclasses
import re
import socket
import warnings
from pathlib import Path

import pytest
import yaml

from cluster.errors import UserError

with warnings.catch_warnings():  # Ray Serve 2.60 uses an argument that pydantic deprecated
    warnings.simplefilter("ignore")
    from ray.serve.config import AutoscalingConfig
    from ray.serve.schema import ServeDeploySchema

    from serve import app, keys


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({}, "registry= is missing"),
        ({"registry": "nowhere"}, "nowhere isn't a registry"),
        ({"registry": "EMPTY"}, "no model in"),
        ({"registry": "GOOD", "colour": "red"}, "unknown argument colour=, expected some of registry"),
        ({"registry": "GOOD", "max_count": "many"}, "max_count=many can't be used, expected a valid integer"),
        ({"registry": "GOOD", "max_count": "0"}, "max_count is 0, expected 1 or more"),
        ({"registry": "GOOD", "device": "tpu"}, "device is tpu, expected cpu or cuda"),
        ({"registry": "GOOD", "api_keys": "nowhere"}, "nowhere: No such file or directory; expected a TOML file"),
    ],
)
def test_a_mistake_in_the_arguments_is_told_before_anything_starts(registry, tmp_path, args, words):
    places = {"GOOD": str(registry), "EMPTY": str(tmp_path)}
    with pytest.raises(UserError, match=words):
        app.build_app({name: places.get(value, value) for name, value in args.items()})


def test_rays_command_line_prints_the_sentence_and_no_traceback():
    import click
    from click.testing import CliRunner

    @click.command()
    def run() -> None:
        app.build_app({})

    result = CliRunner().invoke(run)
    assert result.exit_code == 2
    assert result.output.startswith("Error: registry= is missing")


def test_arguments_as_text_become_an_application(registry, tmp_path):
    keys.main(["--file", str(tmp_path / "keys"), "--name", "lab"])
    args = {"registry": str(registry), "api_keys": str(tmp_path / "keys"), "num_replicas": "2", "max_waiting": "3"}
    deployment = app.build_app(args)._bound_deployment
    assert deployment.num_replicas == 2
    assert deployment.max_ongoing_requests > 3  # health checks go on while sampling is full


def test_a_port_in_use_is_told_at_once(registry, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert app.main(["--registry", str(registry), "--port", str(port)]) == 2
    assert f"port {port} of 127.0.0.1 is in use" in capsys.readouterr().err


def test_a_network_is_not_served_without_keys_by_accident(registry, capsys):
    assert app.main(["--registry", str(registry), "--host", "0.0.0.0"]) == 2
    assert "expected --api-keys FILE" in capsys.readouterr().err


def test_a_port_that_is_none_is_refused(registry, capsys):
    assert app.main(["--registry", str(registry), "--port", "70000"]) == 2
    assert "port is 70000, expected 1 to 65535" in capsys.readouterr().err


def test_serve_run_tells_of_a_port_that_another_program_has():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but it answers nothing
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} of 127.0.0.1 is in use by another program"):
            app.check_port_of_serve_run(port)
    app.check_port_of_serve_run(port)


def test_the_documentation_lists_every_argument_and_a_config_file_that_ray_accepts():
    text = (Path(__file__).parents[2] / "docs" / "service.md").read_text()
    documented = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", text, flags=re.MULTILINE))
    fields = {field.name: field.default for field in dataclasses.fields(app.ServiceConfig)}
    assert documented.keys() == fields.keys()
    shown = {None: "none", False: "false"}
    for name, default in fields.items():
        if name != "registry":
            assert documented[name] == shown.get(default, str(default)), name
    config = ServeDeploySchema.model_validate(yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1]))
    assert config.http_options.host == "127.0.0.1"
    app.parse_arguments(config.applications[0].args)


def test_the_deploy_config_is_one_that_ray_accepts_and_names_what_there_is(registry):
    file = Path(__file__).parents[2] / "configs" / "service.yaml"
    config = ServeDeploySchema.model_validate(yaml.safe_load(file.read_text()))
    assert config.http_options.host == "127.0.0.1"
    assert config.http_options.request_timeout_s is None  # it would cut long streams
    (application,) = config.applications
    service = app.build_app(application.args | {"registry": str(registry)})
    names = {node._bound_deployment.name for node in (service, service._bound_deployment.init_args[2])}
    assert {deployment.name for deployment in application.deployments} == names
    scaled = next(deployment for deployment in application.deployments if deployment.autoscaling_config)
    known = set(
        type(service._bound_deployment._deployment_config.autoscaling_config or AutoscalingConfig()).model_fields
    )
    assert set(scaled.autoscaling_config) <= known
    # what the file overrides says the same as what it overrides
    code = service._bound_deployment
    assert scaled.max_ongoing_requests == code.max_ongoing_requests
    assert scaled.max_queued_requests == code._deployment_config.max_queued_requests
    assert scaled.graceful_shutdown_timeout_s == code._deployment_config.graceful_shutdown_timeout_s


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"direct_port": "8001", "max_replicas": "3"}, "expected one: Ray does not count"),
        ({"direct_port": "0"}, "direct_port is 0, expected 1 to 65535"),
        ({"num_replicas": "4", "max_replicas": "2"}, r"max_replicas is 2, expected num_replicas \(4\) or more"),
        ({"gpus": "0"}, "gpus is 0.0, expected more than 0"),
        ({"log_format": "xml"}, "log_format=xml can't be used, expected 'text' or 'json'"),
        ({"gate_overrides": "nowhere"}, "gate_overrides=.*nowhere: No such file"),
    ],
)
def test_options_that_contradict_each_other_are_told_before_anything_starts(registry, args, words):
    with pytest.raises(UserError, match=words):
        app.build_app({"registry": str(registry)} | args)


def test_more_replicas_than_one_are_for_ray_to_choose_where_a_largest_number_is_given(registry):
    args = {"registry": str(registry), "num_replicas": "2", "max_replicas": "5"}
    scaling = app.build_app(args)._bound_deployment._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas) == (2, 5)


def test_a_direct_port_on_a_network_needs_keys_too(registry, capsys):
    arguments = ["--registry", str(registry), "--direct-port", "9", "--direct-host", "0.0.0.0"]
    assert app.main(arguments) == 2
    assert "host is 0.0.0.0 and there are no API keys" in capsys.readouterr().err
