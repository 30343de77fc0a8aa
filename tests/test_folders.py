"""A folder is written whole or not at all, where its name says."""

from pathlib import Path

import pytest

from hf_rope.folders import check_free, new_folder


@pytest.mark.parametrize("there", [True, False])
def test_a_link_leads_to_the_folder_that_is_written(there, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "real")
    if there:
        (tmp_path / "real").mkdir()
    check_free(tmp_path / "link")
    with new_folder(tmp_path / "link") as folder:
        (folder / "file").touch()
    assert (tmp_path / "link").is_symlink()
    assert [path.name for path in (tmp_path / "real").iterdir()] == ["file"]


def test_the_working_directory_is_no_target(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for target in (Path(), tmp_path):
        with pytest.raises(ValueError, match="is the working directory, which cannot be replaced: name a folder in it"):
            check_free(target)
