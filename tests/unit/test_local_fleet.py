"""The store of `argosy up`: from the environment, from the settings, or in the home folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from producers import ConfigurationError
from workers import settings
from workers.fleet.local import LocalFleet


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalFleet:
    for variable in ("ARGOSY_FLEET", "ARGOSY_STORE_URL", "ARGOSY_STORE_PASSWORD_FILE"):
        monkeypatch.delenv(variable, raising=False)
    return LocalFleet(settings.load(), tmp_path)


def test_the_store_has_the_password_of_its_file(
    fleet: LocalFleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fleet's services get the whole address, and `whereabouts` hides the password."""
    secret = tmp_path / "secret"
    secret.write_text("p@ss\n", encoding="utf-8")
    monkeypatch.setenv("ARGOSY_STORE_URL", "postgresql://argosy@db/argosy")
    monkeypatch.setenv("ARGOSY_STORE_PASSWORD_FILE", str(secret))
    assert fleet.store_url == "postgresql://argosy:p%40ss@db/argosy"
    assert "store    postgresql://argosy:***@db/argosy" in fleet.whereabouts()
    monkeypatch.setenv("ARGOSY_STORE_PASSWORD_FILE", str(tmp_path / "missing"))
    with pytest.raises(ConfigurationError, match=r"ARGOSY_STORE_PASSWORD_FILE: .*missing cannot be read"):
        _ = fleet.store_url


@pytest.mark.parametrize("blank", ["", " \n"])
def test_without_an_address_the_store_is_in_the_home_folder(
    fleet: LocalFleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blank: str
) -> None:
    monkeypatch.setenv("ARGOSY_STORE_URL", blank)
    assert fleet.store_url == f"sqlite:///{tmp_path}/store.db"
