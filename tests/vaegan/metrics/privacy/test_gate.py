import pytest

from vaegan.metrics.privacy.gate import EXIT_STATUS, Check, Verdict, judge, overall

PASS, FAIL, UNKNOWN = Verdict.PASS, Verdict.FAIL, Verdict.UNKNOWN


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [((0.45, 0.6), PASS), ((0.55, 0.61), UNKNOWN), ((0.6, 0.7), UNKNOWN), ((0.61, 0.7), FAIL), ((0.0, 1.0), UNKNOWN)],
)
def test_the_whole_interval_must_lie_on_one_side(interval, verdict):
    assert judge(interval, 0.6) == verdict
    assert judge((-interval[1], -interval[0]), -0.6, at_most=False) == verdict


def checks(*verdicts, needed=True):
    return [Check("c", "images", 0.5, (0.4, 0.6), 0.6, verdict, "", needed_to_pass=needed) for verdict in verdicts]


def test_one_failure_fails_and_one_doubt_keeps_from_passing():
    assert overall(checks(PASS, PASS)) == PASS
    assert overall(checks(PASS, UNKNOWN)) == UNKNOWN
    assert overall(checks(UNKNOWN, FAIL, PASS)) == FAIL
    assert overall([]) == UNKNOWN


def test_a_check_that_is_not_needed_can_fail_but_not_hold_back():
    assert overall(checks(PASS) + checks(UNKNOWN, needed=False)) == PASS
    assert overall(checks(PASS) + checks(FAIL, needed=False)) == FAIL
    assert overall(checks(PASS, needed=False)) == UNKNOWN


def test_verdicts_differ_in_exit_status_and_none_is_a_users_mistake():
    assert EXIT_STATUS[PASS] == 0
    assert len({*EXIT_STATUS.values(), 2}) == 4
