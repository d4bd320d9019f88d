"""The production engine over seeded faults, and proof that its checks can fail."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from tests.simulation.mutants import CAUGHT, Mutant
from tests.simulation.world import survey

IS_THOROUGH = os.environ.get("CI") == "true" or bool(os.environ.get("JOBX_FULL"))
SEEDS = int(os.environ.get("JOBX_SEEDS", "20000" if IS_THOROUGH else "6000"))
BLOCK = 500

TRANSITIONS = (
    "abandon",
    "cancel",
    "cancel-redriving",
    "claim",
    "cleanup-begin",
    "cleanup-last",
    "cleanup-page",
    "collect",
    "collect-claim",
    "complete",
    "deliver",
    "exceed",
    "exceed-request",
    "fail",
    "fail-request",
    "part",
    "reap",
    "hand-back",
    "redrive-begin",
    "redrive-end",
    "redrive-page",
    "release",
    "retry",
    "seal",
    "seal-claim",
    "stage",
    "submit",
)
FAULTS = (
    "applied late",
    "crash",
    "expired lease",
    "handed back",
    "late message",
    "lost message",
    "not delivered",
    "queue lost everything",
    "repeated message",
    "stall",
    "unknown outcome",
)


@pytest.mark.parametrize("first", range(0, SEEDS, BLOCK))
def test_no_fault_breaks_a_promise(first: int, record_property: Callable[[str, object], None]) -> None:
    seeds = min(BLOCK, SEEDS - first)
    counts, violations = survey(first, seeds)
    record_property("simulation", {"seeds": seeds, **counts})
    assert not violations
    never = [name for name in (*TRANSITIONS, *(f"fault {fault}" for fault in FAULTS)) if not counts[name]]
    assert not never or seeds < BLOCK, f"never happened in {seeds} worlds: {never}"


@pytest.mark.parametrize("mutant", CAUGHT, ids=lambda mutant: mutant.name)
def test_the_simulation_catches_a_missing_rule(mutant: Mutant) -> None:
    with mutant.alive() as mutations:
        _, violations = survey(mutant.seed, 3000, mutations, most=1)
    assert violations, "the rule could be left out unnoticed"


def test_the_same_seed_gives_the_same_world() -> None:
    assert survey(7, 20) == survey(7, 20)
