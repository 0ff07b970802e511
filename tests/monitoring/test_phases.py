"""Long phases say that they are under way; short ones stay silent."""

import contextlib
import logging
import time

from darl_jax.monitoring.phases import phase


def test_only_long_phases_are_logged_and_at_once(caplog):
    with caplog.at_level(logging.INFO):
        with phase("Short", silent_seconds=5.0):
            pass
        with phase("Long", silent_seconds=0.02):
            time.sleep(0.2)
            assert [record.getMessage() for record in caplog.records] == ["Long ..."]
        assert caplog.records[1].getMessage().startswith("Long: done in 0.")
        with contextlib.suppress(KeyError), phase("Failing", silent_seconds=0.01):
            time.sleep(0.1)
            raise KeyError
    assert [record.getMessage() for record in caplog.records[2:]] == ["Failing ..."]
