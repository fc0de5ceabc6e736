"""The looks at the store that replace a lost notice."""

from __future__ import annotations

import pytest

from producers.client import notices


def test_many_waiting_callers_look_less_often_without_a_notice() -> None:
    """Hundreds of requests that follow jobs share the time that one may take, and none waits for ever."""
    listener = notices.Listener(None, lambda: pytest.fail("nothing is awaited"), lambda calls: None)
    try:
        listener.follow("a", lambda: None)
        assert listener.quiet_s(0.001) == notices.FALLBACK_S
        for number in range(199):
            listener.follow(f"b{number}", lambda: None)
        assert listener.quiet_s(0.001) == pytest.approx(200 * 0.001 / notices.FALLBACK_SHARE)
        assert listener.quiet_s(1.0) == notices.QUIET_S
    finally:
        listener.close()
