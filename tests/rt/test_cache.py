"""The user's cache: only the user may write to it."""

import os
from pathlib import Path

import pytest

from tadiff_rt.cache import VARIABLE, cache_folder, cache_root
from tadiff_rt.errors import EngineError, OutputError


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def refused(*names):
    with pytest.raises(EngineError) as e:
        cache_folder(*names)
    assert e.value.code == "TD5007"
    return str(e.value)


def test_it_is_made_for_the_user_alone(root):
    folder = cache_folder("speed", "x")
    assert folder == root / "speed" / "x"
    for made in (root, root / "speed", folder):
        assert made.stat().st_mode & 0o777 == 0o700


def test_it_is_found_again(root):
    (cache_folder("speed") / "file").write_text("kept")
    assert (cache_folder("speed") / "file").read_text() == "kept"


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
@pytest.mark.parametrize("which", ["", "speed"])
def test_others_may_not_write_to_it(root, mode, which):
    cache_folder("speed")
    (root / which).chmod(mode)
    assert f"{mode:o}" in refused("speed")


def test_others_may_read_it(root):
    cache_folder("speed")
    root.chmod(0o755)
    assert cache_folder("speed").is_dir()


@pytest.mark.parametrize("which", ["", "speed"])
def test_it_is_no_link(root, tmp_path, which):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    if which:
        cache_folder()
    (root / which).symlink_to(elsewhere)
    assert "link" in refused("speed")


def test_it_belongs_to_the_user(root, monkeypatch):
    cache_folder()
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert "12345" in refused()


def test_a_file_in_its_place_is_no_folder(root):
    root.write_text("")
    with pytest.raises(OutputError):
        cache_folder()


def test_where_it_lies(monkeypatch, tmp_path):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "tadiff"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_root() == Path(tmp_path / "home" / ".cache" / "tadiff")
