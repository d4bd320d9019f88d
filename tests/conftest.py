"""What every test starts from: no setting of whoever runs the tests, and no chance in what Hypothesis tries in CI."""

from __future__ import annotations

import os
from collections import Counter

from _pytest.terminal import TerminalReporter
from hypothesis import settings

for name in [name for name in os.environ if name.startswith("MR_")]:
    del os.environ[name]

settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("here", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") == "true" else "here")


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """How many worlds the simulation lived through, and how often everything happened in them."""
    total: Counter[str] = Counter()
    for report in terminalreporter.stats.get("passed", []):
        for name, value in report.user_properties:
            if name == "simulation":
                total.update(value)
    if total:
        seeds = total.pop("seeds")
        happened = ", ".join(f"{name} {number}" for name, number in sorted(total.items()))
        terminalreporter.write_line(f"simulation: {seeds} seeds; {happened}")
