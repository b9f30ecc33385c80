import pytest

from sfb.files import write


def test_a_file_is_written_as_a_whole(tmp_path):
    path = tmp_path / "out.json"
    write(path, "one")
    write(path, "two ×")
    assert path.read_text(encoding="utf-8") == "two ×"
    write(path, b"\xff\x00")
    assert path.read_bytes() == b"\xff\x00"
    assert [file.name for file in tmp_path.iterdir()] == ["out.json"]


def test_what_cannot_be_written_leaves_the_old_text(tmp_path):
    path = tmp_path / "out.json"
    write(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write(path, "new \ud800")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["out.json"]
    with pytest.raises(OSError, match="none"):
        write(tmp_path / "none" / "out.json", "new")


def test_links_and_devices_stay_what_they_are(tmp_path):
    link, path = tmp_path / "link", tmp_path / "out.json"
    link.symlink_to(path)
    write(link, "one")
    assert link.is_symlink()
    assert path.read_text() == "one"
    write(tmp_path / "/dev/null", "nothing")
