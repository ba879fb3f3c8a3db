"""Settings of every test: on a busy machine slow examples are no failure, and workers share no fixture."""

import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("quire", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("quire")

# What tests start inherits whether a signal is ignored: SIGHUP is under nohup, SIGINT behind a shell's `&`.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)

HERE = Path(__file__).parent


# Before pytest-xdist reads the marks.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file is one worker's, so that its fixtures are made once; so are all tests on the control plane."""
    for item in items:
        if not item.path.is_relative_to(HERE):
            continue
        place = item.path.relative_to(HERE)
        group = "cluster" if place.parts[0] == "cluster" else place.with_suffix("").as_posix()
        item.add_marker(pytest.mark.xdist_group(group))
