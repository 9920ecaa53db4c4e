import math
from dataclasses import asdict

import pytest

from vaegan.watchdog import Memory, Watchdog, WatchdogConfig

HEALTHY = {
    "images": 256,
    "prior": 80.0,
    "like": 2000.0,
    "beta": 1.0,
    "d_real": 0.8,
    "d_recon": 0.15,
    "d_sample": 0.05,
    "spread_real": 0.28,
    "spread_sample": 0.15,
    "gradient_norm_encoder": 1800.0,
    "gradient_norm_decoder": 2500.0,
    "gradient_norm_discriminator": 40.0,
    "kl_per_dimension": [1.2, 0.8, 2.0],
}
SIGNS = {
    "won": (dict(d_real=0.9999, d_recon=2e-4, d_sample=1e-5), "the discriminator has won: mean D"),
    "nothing in the latents": (dict(kl_per_dimension=[1e-3, 2e-4, 0.0]), "the latents carry nothing"),
    "latents far away": (dict(kl_per_dimension=[80.0, 30.0, 10.0]), "the latents have left the prior: 40 nats"),
    "one sample": (dict(spread_sample=0.01), "all samples look alike"),
}


def examined(watchdog, *lines):
    return [watchdog.examine(HEALTHY | line) for line in lines]


def test_a_healthy_run_is_left_alone_however_long():
    watchdog = Watchdog(WatchdogConfig())
    assert examined(watchdog, *[{"gradient_norm_decoder": 1000.0 * (1 + i % 5)} for i in range(100)]) == [None] * 100
    assert not watchdog.suspicious


@pytest.mark.parametrize("sign", SIGNS)
def test_a_fault_counts_once_it_lasted_as_long_as_patience(sign):
    line, sentence = SIGNS[sign]
    watchdog = Watchdog(WatchdogConfig(patience=3))
    first, second, third = examined(watchdog, line, line, line)
    assert (first, second) == (None, None)
    assert sentence in third.what
    assert third.remedy


@pytest.mark.parametrize("sign", SIGNS)
def test_a_fault_that_passes_is_forgotten(sign):
    line, _ = SIGNS[sign]
    watchdog = Watchdog(WatchdogConfig(patience=3))
    assert examined(watchdog, line, line) == [None, None]
    assert watchdog.suspicious
    assert examined(watchdog, {}) == [None]
    assert not watchdog.suspicious
    assert examined(watchdog, line, line) == [None, None]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["like", "gradient_norm_encoder", "kl_per_dimension"])
def test_one_figure_that_is_not_finite_is_enough_even_with_the_watchdog_off(name, value):
    wrong = [0.1, value] if name == "kl_per_dimension" else value
    for enabled in (True, False):
        (fault,) = examined(Watchdog(WatchdogConfig(enabled=enabled)), {name: wrong})
        assert fault.what == f"{name} became NaN or infinite"


def test_a_norm_explodes_against_its_own_past_only_and_at_once():
    watchdog = Watchdog(WatchdogConfig(norm_growth=50.0))
    assert examined(watchdog, {"gradient_norm_decoder": 1e9}) == [None]  # nothing is known yet
    watchdog = Watchdog(WatchdogConfig(norm_growth=50.0))
    assert examined(watchdog, *[{}] * 6) == [None] * 6
    assert examined(watchdog, {"gradient_norm_discriminator": 49 * 40.0}) == [None]
    (fault,) = examined(watchdog, {"gradient_norm_decoder": 51 * 2500.0})
    assert fault.what == "the decoder's gradient norm is 1.28e+05, 51 times its usual 2.5e+03"


def test_latents_without_content_are_no_fault_while_nothing_holds_them():
    watchdog = Watchdog(WatchdogConfig(patience=1))
    assert examined(watchdog, {"kl_per_dimension": [0.0, 0.0], "beta": 0.0}) == [None]


def test_a_vae_and_a_gan_are_watched_by_what_they_have():
    for missing in (("d_real", "d_recon", "d_sample", "spread_sample", "spread_real"), ("kl_per_dimension", "d_recon")):
        line = {name: value for name, value in HEALTHY.items() if name not in missing}
        assert Watchdog(WatchdogConfig(patience=1)).examine(line) is None


def test_switched_off_it_sees_nothing_but_nan():
    watchdog = Watchdog(WatchdogConfig(enabled=False, patience=1))
    assert examined(watchdog, *(line for line, _ in SIGNS.values())) == [None] * len(SIGNS)


def test_its_memory_survives_a_checkpoint():
    line, _ = SIGNS["won"]
    watchdog = Watchdog(WatchdogConfig(patience=3))
    examined(watchdog, {}, line, line)
    resumed = Watchdog(WatchdogConfig(patience=3))
    resumed.memory = Memory(**asdict(watchdog.memory))
    assert "won" in resumed.examine(HEALTHY | line).what


@pytest.mark.parametrize("settings", [dict(patience=0), dict(rate_factor=1.0), dict(norm_growth=1.0)])
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(ValueError, match="expected"):
        WatchdogConfig(**settings)
