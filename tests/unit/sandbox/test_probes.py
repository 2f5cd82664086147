from __future__ import annotations

import errno
import itertools

import pytest

from enclaved.sandbox import probes
from enclaved.sandbox.probes import Outcome, judge
from enclaved.sandbox.tables import REFUSED_ERRNO

FILTERED = Outcome("fork", tried=True, allowed=False, errno_name=errno.errorcode[REFUSED_ERRNO])
DENIED = Outcome("fork", tried=True, allowed=False, errno_name="EPERM")
WORKED = Outcome("fork", tried=True, allowed=True)
UNTRIED = Outcome("fork", tried=False, allowed=False, detail="no victim_pid given")


@pytest.mark.parametrize(
    ("outside", "inside", "verdict"),
    [
        (WORKED, FILTERED, "refused"),
        (WORKED, DENIED, "refused"),
        (DENIED, FILTERED, "refused"),  # an error that only the filter gives proves it alone
        (DENIED, DENIED, "refused by the system anyway"),
        (UNTRIED, DENIED, "refused by the system anyway"),
        (WORKED, WORKED, "allowed"),
        (DENIED, WORKED, "allowed"),
        (WORKED, UNTRIED, "not tried"),
    ],
)
def test_a_refusal_counts_only_when_it_proves_something(outside: Outcome, inside: Outcome, verdict: str) -> None:
    assert judge(outside, inside) == verdict


def test_what_is_open_by_design_is_called_so() -> None:
    for name in probes.OPEN_BY_DESIGN:
        assert judge(Outcome(name, True, True), Outcome(name, True, True)) == "open by design"


def test_two_different_attempts_cannot_be_compared() -> None:
    with pytest.raises(ValueError):
        judge(WORKED, Outcome("bind_tcp4", True, True))


def test_an_attempt_without_its_target_is_not_made() -> None:
    for name in probes.names():
        if probes.needs(name):
            (outcome,) = probes.run([name], {})
            assert not outcome.tried
            assert not outcome.allowed
            assert all(target in outcome.detail for target in probes.needs(name))


def test_every_target_is_explained_and_used() -> None:
    needed = set(itertools.chain.from_iterable(probes.needs(name) for name in probes.names()))
    assert needed == set(probes.TARGETS)


def test_an_unknown_attempt_is_an_error() -> None:
    with pytest.raises(KeyError):
        probes.run(["no_such_attempt"], {})


def test_an_attempt_that_works_says_so() -> None:
    (outcome,) = probes.run(["list_root"], {})
    assert outcome.tried
    assert outcome.allowed
    assert outcome.detail.endswith("names")


def test_an_attempt_that_fails_names_the_error() -> None:
    (outcome,) = probes.run(["read_home_file"], {"home_file": "/nonexistent/file"})
    assert outcome == Outcome("read_home_file", True, False, "ENOENT", outcome.detail)
    assert "nonexistent" in outcome.detail


def test_an_outcome_travels_as_plain_values() -> None:
    for outcome in (FILTERED, WORKED, UNTRIED):
        assert Outcome.from_dict(outcome.to_dict()) == outcome
