"""Secrets and waits of webhooks: no database, no network."""

from __future__ import annotations

import base64

import pytest

from bgpo.egress.signing import keys
from jobs.settings import Settings
from jobs.webhooks import RETRY_DELAYS_S, retry_in

SECRET = "whsec_" + base64.b64encode(b"s" * 32).decode()
OTHER = "whsec_" + base64.b64encode(b"t" * 32).decode()


class TestSecrets:
    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("hush-hush", "begins with whsec_"),
            ("whsec_%%%", "base64"),
            ("whsec_" + base64.b64encode(b"x" * 23).decode(), "24 to 64 bytes"),
            ("whsec_" + base64.b64encode(b"x" * 65).decode(), "24 to 64 bytes"),
            (f"{SECRET} other", "begins with whsec_"),
        ],
    )
    def test_a_wrong_one_is_refused_without_showing_it(self, text: str, problem: str) -> None:
        with pytest.raises(ValueError, match=problem) as refused:
            Settings(webhook_secret=text)
        assert text not in str(refused.value)
        assert text not in repr(refused.value)

    def test_one_or_two(self) -> None:
        assert keys(SECRET) == [b"s" * 32]
        assert keys(f" {SECRET}  {OTHER}\n") == [b"s" * 32, b"t" * 32]

    def test_an_empty_variable_means_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("BGPO_WEBHOOK_SECRET", "")
        assert Settings().webhook_secret is None


class TestWaits:
    def test_they_grow_and_end(self) -> None:
        for attempt, planned in enumerate(RETRY_DELAYS_S, start=1):
            waits = [retry_in(attempt) for _ in range(200)]
            assert all(wait is not None and planned <= wait <= planned * 1.2 for wait in waits)
            assert len(set(waits)) > 1
        assert retry_in(len(RETRY_DELAYS_S) + 1) is None
        assert retry_in(len(RETRY_DELAYS_S) + 2, "60") is None
        assert 12 * 3600 < sum(RETRY_DELAYS_S) < 36 * 3600  # about a day

    @pytest.mark.parametrize(
        ("header", "least", "most"),
        [
            ("7200", 7200, 7200),
            ("0", 5, 6),
            ("999999999", 86_400, 86_400),
            ("Thu, 01 Jan 1970 03:00:00 GMT", 9800, 9800),
            ("Thu, 01 Jan 1970 00:00:00 GMT", 5, 6),
            ("-5", 5, 6),
            ("soon", 5, 6),
            ("Thu, 99 Jan 1970 00:00:00 GMT", 5, 6),
            ("²", 5, 6),
            ("9" * 400, 5, 86_400),
        ],
    )
    def test_the_receivers_wish(self, header: str, least: float, most: float) -> None:
        wait = retry_in(1, header, now=1000)
        assert wait is not None
        assert least <= wait <= most
