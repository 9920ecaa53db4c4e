import hashlib
import secrets
from datetime import date

import numpy as np
import pytest

from cluster.errors import UserError
from serve.access import keyfile
from serve.access.keyfile import ENVIRONMENT_VARIABLE, Keys, Limits, parse_keys, read_keys

PLAIN = "augray_this-is-a-plain-key-put-there-by-mistake"


def sha256(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def section(name: str = "lab", key: str = PLAIN, more: str = "") -> str:
    return f'[keys.{name}]\nsha256 = "{sha256(key)}"\n{more}\n'


def parse(text: str) -> Keys:
    return parse_keys(text, "keys.toml")


def test_each_of_many_random_keys_finds_its_own_section_and_a_changed_one_finds_none():
    rng = np.random.default_rng(0)
    texts = {f"lab-{number}": secrets.token_urlsafe(rng.integers(1, 60)) for number in range(200)}
    keys = parse("".join(section(name, text) for name, text in texts.items()))
    assert keys.names == tuple(texts)
    for name, text in texts.items():
        assert keys.find(text).name == name
        place = rng.integers(len(text))
        changed = text[:place] + ("A" if text[place] != "A" else "B") + text[place + 1 :]
        assert changed in texts.values() or keys.find(changed) is None
    for other in ("", "lab-1", sha256(texts["lab-1"]), texts["lab-1"] + " ", texts["lab-1"] + "\0"):
        assert keys.find(other) is None


@pytest.mark.parametrize("presented", ["\ud800", chr(0xDCFF), "ÿþ", "\0", "a" * 100_000, "ключ"])
def test_any_text_can_be_presented(presented):
    keys = parse(section(key="ключ"))
    assert (keys.find(presented) is not None) is (presented == "ключ")


def test_a_key_is_good_through_its_last_day_and_not_after():
    keys = parse(section(more="expires = 2027-01-31"))
    assert keys.find(PLAIN, date(2027, 1, 31)) is not None
    assert keys.find(PLAIN, date(2027, 2, 1)) is None
    assert parse(section(more="expires = 2020-01-01")).find(PLAIN) is None
    assert parse(section(more="expires = 9999-12-31")).find(PLAIN) is not None


def test_a_section_with_a_hash_alone_may_sample_any_model_without_limit():
    key = parse(section()).find(PLAIN)
    assert (key.scopes, key.models, key.limits, key.expires) == ({"sample"}, frozenset(), Limits(), None)


def test_every_field_is_read():
    more = """scopes = ["sample", "operate"]
        models = ["chest", "findings"]
        requests_per_minute = 60
        images_per_minute = 5000
        images_per_day = 100_000
        expires = 2027-01-31  # the end of the project"""
    key = parse(section('"a.b"', more=more).replace(sha256(PLAIN), sha256(PLAIN).upper())).find(PLAIN, date(2026, 1, 1))
    assert (key.name, key.scopes, key.models) == ("a.b", {"sample", "operate"}, {"chest", "findings"})
    assert key.limits == Limits(requests_per_minute=60, images_per_minute=5000, images_per_day=100_000)
    assert (key.sha256, key.expires) == (sha256(PLAIN), date(2027, 1, 31))


def test_keys_come_from_a_file_or_from_the_environment_and_never_from_both(tmp_path):
    file = tmp_path / "keys.toml"
    file.write_text(section("of-file"))
    variable = {ENVIRONMENT_VARIABLE: section("of-environment")}
    assert read_keys(file, {}).names == ("of-file",)
    assert read_keys(None, variable).names == ("of-environment",)
    assert read_keys(None, {}) is None
    with pytest.raises(UserError, match="both given"):
        read_keys(file, variable)


def test_an_empty_variable_is_a_mistake_and_not_a_service_without_keys():
    with pytest.raises(UserError, match=f"no key in {ENVIRONMENT_VARIABLE}"):
        read_keys(None, {ENVIRONMENT_VARIABLE: ""})


def test_a_file_that_others_may_read_is_accepted(tmp_path):
    file = tmp_path / "keys.toml"
    file.write_text(section())
    file.chmod(0o644)
    assert read_keys(file, {}).names == ("lab",)


def test_a_missing_file_and_one_that_is_not_text_are_told_apart(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        read_keys(tmp_path / "nowhere", {})
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is not UTF-8"):
        read_keys(tmp_path / "binary", {})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no key in keys.toml"),
        ("# nothing yet", "no key in keys.toml"),
        ("[keys]", "no key in keys.toml"),
        (PLAIN + "\n", r"not TOML \(line 1, column \d+\)"),
        (f'[keys.lab]\nsha256 = "{PLAIN}\n', r"not TOML \(line 2"),
        (f'[keys.lab]\n"{PLAIN}" = 1\n"{PLAIN}" = 2', "not TOML"),
        (f"[keys.{PLAIN}]\n[keys.{PLAIN}]", "not TOML"),
        ("x = " + "[" * 100_000, "not TOML"),
        ('[keys.lab]\nsha256 = "\ud800"', "not TOML"),
        (f'keys = "{PLAIN}"', "outside of the sections"),
        (f'"{PLAIN}" = 1\n' + section(), "outside of the sections"),
        (section().replace("keys.", "key."), "outside of the sections"),
        (f'[keys]\nlab = "{PLAIN}"', r"\[keys.lab\] in keys.toml is not a section"),
        (section("Lab"), "the name of section 1 in keys.toml"),
        (section() + section(f'"{PLAIN}!"', "other"), "the name of section 2 in keys.toml"),
        (section('""'), "the name of section 1"),
        (section('"-lab"'), "the name of section 1"),
        (section("a" * 65), "the name of section 1"),
        ("[keys.lab]", "sha256 of .*lab.* is missing"),
        (f'[keys.lab]\nsha256 = "{PLAIN}"', "sha256 of .*lab.* is no SHA-256"),
        (f'[keys.lab]\nsha256 = "sha256:{sha256("k")}"', "sha256 of .*lab.* is no SHA-256"),
        ("[keys.lab]\nsha256 = 5", "sha256 of .*lab.* is no SHA-256"),
        (section(more='scope = ["sample"]'), "lab.* has the unknown field scope, expected some of sha256, scopes"),
        (section(more=f'{PLAIN} = "x"'), "lab.* has an unknown field"),
        (section(more=f'scopes = ["{PLAIN}"]'), "scopes of .*lab.* some of sample, reconstruct, operate"),
        (section(more='scopes = "sample"'), "scopes of .*lab"),
        (section(more="scopes = []"), "scopes of .*lab"),
        (section(more="scopes = [[1]]"), "scopes of .*lab"),
        (section(more="models = []"), "models of .*lab"),
        (section(more='models = [""]'), "models of .*lab"),
        (section(more="models = [1]"), "models of .*lab"),
        (section(more="requests_per_minute = 0"), "requests_per_minute of .*lab.* 1 or more"),
        (section(more="images_per_minute = 1.5"), "images_per_minute of .*lab.* 1 or more"),
        (section(more="images_per_day = true"), "images_per_day of .*lab.* 1 or more"),
        (section(more='images_per_day = "5"'), "images_per_day of .*lab.* 1 or more"),
        (section(more='expires = "2027-01-31"'), "expires of .*lab.* a date without quotes"),
        (section(more="expires = 2027-01-31T00:00:00Z"), "expires of .*lab.* a date without quotes"),
        (section(more="expires = 2027-02-30"), "not TOML"),
        (section("a") + section("b"), r"\[keys.a\] and \[keys.b\] in keys.toml have the same sha256"),
    ],
)
def test_a_mistake_is_told_with_its_place_and_without_what_may_be_a_secret(text, words):
    with pytest.raises(UserError, match=words) as caught:
        parse(text)
    told = str(caught.value)
    assert PLAIN not in told
    assert sha256(PLAIN) not in told
    assert "\n" not in told


def test_the_example_in_the_documentation_of_the_format_is_read():
    example = keyfile.__doc__.partition("\n\n")[2].partition("\n\n")[0].replace('"..."', f'"{sha256(PLAIN)}"')
    assert parse(example).names == ("radiology-lab",)
