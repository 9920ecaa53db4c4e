"""The privacy gate over HTTP: who failed an audit is refused, unless an operator answers for it in writing."""

import shutil

import pytest

from cluster.errors import UserError
from serve.gate import Gate, read_overrides
from vaegan.card import record_audit
from vaegan.checkpoint import read_info

OVERRIDE = """
[[override]]
model = "chest/2"
scope = "images"
reason = "A phantom: there is nobody whose privacy could be at stake."
by = "Dr. A. Example"
date = 2026-11-23
"""
BODY = {"model": "chest", "class": "normal"}


def privacy(images="pass", model="pass"):
    scopes = {
        name: {"verdict": verdict, "checks": [], "sentence": ""}
        for name, verdict in (("images", images), ("model", model))
    }
    return {"verdict": "fail", "scopes": scopes}


@pytest.fixture
def audited(registry, tmp_path, write_verdict):
    """A registry whose chest/2 was audited with given verdicts, as model.json would hold them."""

    def build(**verdicts):
        root = tmp_path / "registry"
        if not root.exists():
            shutil.copytree(registry, root)
        folder = root / "chest" / "2"
        write_verdict(folder, privacy(**verdicts))
        return root

    return build


def test_a_model_whose_images_failed_gives_no_images_in_any_way(audited, service_of):
    service = service_of(registry=audited(images="fail"))
    ends = {"from": {"seed": 1}, "to": {"seed": 2}}
    for answer in (
        service.post(BODY),
        service.get("/v1/models/chest/2/images/normal/1/0.png"),
        service.request("HEAD", "/v1/models/chest/2/images/normal/1/0.png"),
        service.request("POST", "/v1/interpolate", json=BODY | ends),
    ):
        assert answer.status_code == 403
    assert "failed its privacy audit" in service.post(BODY).json()["detail"]
    assert service.post(BODY | {"version": "1"}).status_code == 200
    listed = {f"{m['name']}/{m['version']}": m for m in service.get("/v1/models").json()["models"]}
    assert listed["chest/2"]["serves"] == ["reconstruct"]
    assert listed["chest/2"]["privacy"]["images"] == "fail"
    assert service.get("/v1/models/chest/2/card").status_code == 200  # why it failed may be read


def test_a_model_whose_networks_failed_gives_images_but_says_nothing_of_a_clients_image(audited, service_of, film):
    service = service_of(registry=audited(model="fail"))
    answer = service.post(BODY)
    assert (answer.status_code, answer.headers["x-augray-privacy"]) == (200, "pass")
    for path in ("encode", "reconstruct", "anomaly"):
        refused = service.upload(f"/v1/{path}?model=chest&class=normal", film)
        assert refused.status_code == 403
        assert "training data" in refused.json()["detail"]


def test_an_operators_written_override_serves_it_and_is_told_with_every_image(audited, service_of, tmp_path):
    (tmp_path / "overrides.toml").write_text(OVERRIDE)
    service = service_of(registry=audited(images="fail"), gate_overrides=tmp_path / "overrides.toml")
    answer = service.post(BODY)
    assert (answer.status_code, answer.headers["x-augray-privacy"]) == (200, "fail; overridden")
    (listed,) = [m for m in service.get("/v1/models").json()["models"] if (m["name"], m["latest"]) == ("chest", True)]
    assert "Dr. A. Example" in listed["privacy"]["override"]
    assert listed["serves"] == ["sample", "reconstruct"]


@pytest.mark.parametrize(
    ("verdict", "strict", "status"),
    [
        ("pass", True, 200), ("too little data to say", False, 200), ("too little data to say", True, 403),
        ("fail", False, 403), ("fail", True, 403),
    ],
)  # fmt: skip
def test_a_strict_service_takes_only_what_passed(audited, service_of, verdict, strict, status):
    service = service_of(registry=audited(images=verdict), require_audit=strict)
    assert service.post(BODY).status_code == status


def test_a_strict_service_refuses_what_was_never_audited(service_of):
    answer = service_of(require_audit=True).post(BODY)
    assert answer.status_code == 403
    assert "not audited" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("reason = ", "why = "), "expected model, scope, reason, by, date"),
        (('"images"', '"all"'), "scope is 'all'"),
        (("A phantom: there is nobody whose privacy could be at stake.", "because"), "20 characters"),
        (("Dr. A. Example", " "), "who answers for it"),
        (("2026-11-23", '"yesterday"'), "expected a date"),
        (("[[override]]", "[override]"), "expected .* tables only"),
        (("[[override]]", "[["), "isn't TOML"),
    ],
)
def test_an_override_that_does_not_say_what_why_who_and_when_is_refused(tmp_path, change, words):
    (tmp_path / "overrides.toml").write_text(OVERRIDE.replace(*change))
    with pytest.raises(UserError, match=words):
        read_overrides(tmp_path / "overrides.toml")


def test_an_override_holds_for_its_model_and_scope_alone(tmp_path):
    (tmp_path / "overrides.toml").write_text(OVERRIDE)
    gate = Gate(read_overrides(tmp_path / "overrides.toml"))
    found = privacy(images="fail", model="fail")
    assert not gate.judge("chest/2", found, "images").refused
    assert gate.judge("chest/2", found, "model").refused
    assert gate.judge("chest/3", found, "images").refused


def test_the_verdict_is_read_where_an_audit_writes_it(registry, tmp_path):
    """The audit's own writer, not this test's idea of model.json."""
    root = shutil.copytree(registry, tmp_path / "registry")
    found = privacy(images="fail") | {
        "checks": [], "finished": "today", "synthetic": "x", "assumptions": {"too_few": ""},
        "settings": {"num_synthetic": 1, "num_members": 1, "num_member_patients": 1, "num_held_out": 1,
                     "num_held_out_patients": 1, "extractors": []},
    }  # fmt: skip
    record_audit(root / "chest" / "2", found)
    assert Gate().judge("chest/2", read_info(root / "chest" / "2").privacy, "images").refused
