"""What every test starts from: no setting of whoever runs the tests, and no chance in what Hypothesis tries in CI."""

from __future__ import annotations

import os

from hypothesis import settings

for name in [name for name in os.environ if name.startswith("MR_")]:
    del os.environ[name]

settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("here", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") == "true" else "here")
