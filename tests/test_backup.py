"""What was made before stands until what replaces it is finished."""

import dataclasses
import os

import pytest
from etils import epath
from test_core import status, step

from miniplm_jax.core import backup, claims, files, manifest, workdir
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.execute import execute


class KilledError(BaseException):
  """As kill -9: nothing is put right after it."""


def made(folder, content=b"made", *, whole_folder=True, **more):
  """A step of three files, of which one lies in a folder."""
  out = epath.Path(folder) / "out"

  def run(unused_inputs):
    for name in ("file", "below/file", content.decode()):
      files.write_bytes(out / name, content)
    return {"files": {"file": files.describe(out / "file")}}

  it = step(folder, settings={"content": content.decode()}, run=run, **more)
  names = ("file", "below", "*ade", "*ew")
  outputs = (out,) if whole_folder else tuple(out / n for n in names)
  return dataclasses.replace(it, outputs=outputs)


def content(folder):
  """All files; a scratch file goes when its process has ended."""
  return {
    str(p.relative_to(folder)): p.read_bytes()
    for p in sorted(folder.rglob("*"))
    if p.is_file() and not files.is_passing(p)
  }


def refuse(unused_inputs):
  raise UserError("no", "here", "do")


@pytest.mark.parametrize("kind", [{}, {"is_view": True}, {"is_measure": True}])
@pytest.mark.parametrize("whole_folder", [True, False])
def test_a_refused_remake_leaves_what_was_made(tmp_path, kind, whole_folder):
  first = made(tmp_path, whole_folder=whole_folder, **kind)
  execute([first])
  before = content(tmp_path)
  fails = dataclasses.replace(first, run=refuse)
  for force in {True, not kind.get("is_view")}:
    with pytest.raises(UserError, match="no, here, do"):
      execute([dataclasses.replace(fails, settings={"a": 1})], force)
    assert content(tmp_path) == before
  execute([fails])  # skipped


@pytest.mark.parametrize(
  "whole_folder, is_view", [(True, False), (False, True)]
)
def test_a_kill_in_any_gap_loses_nothing(tmp_path, whole_folder, is_view):
  """The old is there or the new: whichever the next run asks for."""
  how = {"whole_folder": whole_folder, "is_view": is_view}
  old, new = (made(tmp_path, c, **how) for c in (b"made", b"new"))
  execute([old])
  is_old = content(tmp_path)
  kept = manifest.read(old.manifest).fingerprint
  steps = 0

  def dies_after(n):
    """Kills at the nth change of the disk; also what is done on the way out."""
    left = [n]

    def step(real):
      def call(*given, **named):
        left[0] -= 1
        if left[0] < 0:
          raise KilledError
        return real(*given, **named)

      return call

    context = pytest.MonkeyPatch()
    for name in ("replace", "unlink", "rmdir"):
      context.setattr(os, name, step(getattr(os, name)))
    context.setattr(files, "remove", step(files.remove))
    return context

  done = False
  while not done:
    context = dies_after(steps)
    try:
      execute([new], force=True)
      done = True
    except KilledError:
      pass
    finally:
      context.undo()
    if manifest.read(new.manifest) is None or steps % 2:
      # Also the putting back is killed, once at every step.
      for again in range(40):
        context = dies_after(again)
        try:
          status(old)
          execute([old], force=False)
          break
        except (KilledError, UserError):
          pass
        finally:
          context.undo()
    found = manifest.read(old.manifest)
    if found.settings == {"content": "new"}:
      execute([new])  # finished, and swept
      assert b"made" not in content(tmp_path).values()
      execute([old], force=True)
    else:
      execute([old])
    assert content(tmp_path).keys() == is_old.keys()
    found = manifest.read(old.manifest)
    assert found.fingerprint == kept
    found.check_content()
    steps += 1
  assert steps > 8


def test_a_forced_remake_that_was_stopped_is_gone_on_with(tmp_path):
  old, new = made(tmp_path), made(tmp_path, b"new")
  execute([old])
  out = tmp_path / "out"

  def stop(unused_inputs):
    (out / "new").write_bytes(b"half")
    raise KilledError

  with pytest.raises(KilledError):
    execute([dataclasses.replace(new, run=stop)], force=True)
  assert status(new) == "would resume" and status(old) == "done"
  third = made(tmp_path, b"third")
  with pytest.raises(UserError, match=r"content is .new. there"):
    execute([third])
  assert (out / "new").read_bytes() == b"half"
  execute([new])
  assert not any(backup.is_old(p) for p in out.rglob("*"))
  assert (out / "new").read_bytes() == b"new"


def test_a_folder_that_is_a_link_is_emptied_and_stays_one(tmp_path):
  execute([made(tmp_path)])
  (tmp_path / "out").rename(tmp_path / "far")
  (tmp_path / "out").symlink_to(tmp_path / "far")
  execute([made(tmp_path, b"new")], force=True)
  assert (tmp_path / "out").is_symlink()
  names = {"file", "below", "new", "manifest.json"}
  assert set(os.listdir(tmp_path / "far")) == names


def test_who_was_refused_touches_nothing_of_another(tmp_path):
  it = made(tmp_path, is_view=True)
  execute([it])
  folder = epath.Path(tmp_path / ".claims")
  with claims.Board(folder, 9) as one, claims.Board(folder, 9) as two:
    assert one.claim("out/manifest.json")
    it.backup.set_aside()
    it.partial.write_text("{}")
    with pytest.raises(UserError, match="being made by"):
      execute([it], force=True, board=two)
  assert it.backup.exists() and it.partial.exists()


def test_what_is_made_of_a_table_goes_without_what_lies_beside_it(tmp_path):
  folder = epath.Path(tmp_path)
  kept = {"evaluation.json", "evaluation.arrow", "tasks/a.json"}
  for name in kept | {"part-0-1.parquet", "workers/1.json"}:
    files.write_bytes(folder / name, b"")
  backup.clear(workdir.table_files(folder))
  assert set(content(tmp_path)) == kept
