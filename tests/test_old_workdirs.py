"""Workdirs of older releases: pytest --old_release=CHECKOUT."""

import pathlib

import old_workdirs
import pytest


def test_workdirs_of_an_older_release_are_read_or_refused(request, tmp_path):
  checkouts = request.config.getoption("old_release")
  if not checkouts:
    pytest.skip("no working copy of an older release: see --old_release")
  for number, checkout in enumerate(checkouts):
    folder = tmp_path / str(number)
    assert not old_workdirs.check_all(pathlib.Path(checkout), folder)
