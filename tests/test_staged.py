"""Method staged: rows are selected again while a student is trained."""

import base64
import io
import itertools
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers import LONG, ended, refused, run, together
from trainers import assert_same_run

import miniplm_jax as mp
from miniplm_jax.core import files, manifest
from miniplm_jax.core.errors import UserError
from miniplm_jax.scoring import worker
from miniplm_jax.training import trained
from miniplm_jax.training.telemetry import Telemetry

STEPS, ENDS = 9, (2, 5, 9)
# One epoch: each of these rows is trained on once.
STAGED = (
  "--config.method=staged",
  f"--config.train.steps={STEPS}",
  f"--config.staged.at={ENDS[:-1]}",
  "--config.select.ratio=0",
  f"--config.select.rows={8 * STEPS}",
  "--config.run.checkpoint_every=1",
)


class Batches:
  """The rows of each step, as training says them."""

  def __init__(self, monkeypatch):
    self.rows, add = {}, Telemetry.add

    def noted(telemetry, step, values, row_ids):
      self.rows[step] = row_ids
      add(telemetry, step, values, row_ids)

    monkeypatch.setattr(Telemetry, "add", noted)


@pytest.fixture(scope="module")
def whole(finished, tmp_path_factory):
  """An unbroken run, and the rows of each of its steps."""
  folder = tmp_path_factory.mktemp("staged")
  shutil.copytree(finished, folder, dirs_exist_ok=True)
  with pytest.MonkeyPatch.context() as patch:
    batches = Batches(patch)
    stages = "--stages=select,train,evaluate,export,report"
    done = run(folder, stages, "--config.materialize.format=megatron", *STAGED)
  (folder / "log.txt").write_text(done.stdout)
  return folder / "run", batches.rows


def means(folder) -> dict[int, np.float32]:
  """Mean NLL by row of a score table."""
  found = {}
  for path in sorted(folder.glob("*.parquet")):
    columns = pq.read_table(path).to_pydict()
    nll = np.array(columns["nll_sum"], np.float32)
    mean = nll / np.array(columns["n_tokens"], np.float32)
    found |= dict(zip(columns["row_id"], mean))
  return found


def kept_rows(folder, name: str) -> list[int]:
  return np.load(folder / "selection" / name / "rows.npy").tolist()


def test_each_stage_has_the_best_of_the_rest(whole):
  folder, batches = whole
  teacher, reference = (
    means(folder / "scores" / name) for name in ("teacher", "reference")
  )
  rest, kept = set(teacher), []
  for k, (first, end) in enumerate(zip((0, *ENDS), ENDS)):
    score = {row: reference[row] - teacher[row] for row in rest}
    if k:
      student = means(folder / "scores" / f"staged-{k}")
      assert set(student) == rest
      score = {row: student[row] - teacher[row] for row in rest}
    best = sorted(rest, key=lambda row: (-score[row], row))
    kept.append(sorted(best[: 8 * (end - first)]))
    assert kept_rows(folder, f"staged-{k}") == kept[k]
    seen = np.concatenate([batches[s] for s in range(first + 1, end + 1)])
    assert sorted(seen) == kept[k]  # each once
    rest -= set(kept[k])
  union = sorted(itertools.chain(*kept))
  assert kept_rows(folder, "staged") == union
  assert kept[1] != sorted(sorted(set(teacher) - set(kept[0]))[:24])
  saved = io.BytesIO()
  np.save(saved, np.array(union, np.int64))
  path = folder / "selection/staged/rows.npy"
  assert path.read_bytes() == saved.getvalue()


def test_scoring_on_the_way_counts_and_is_shown(whole):
  folder, _ = whole
  made = manifest.read(folder / "students/staged/manifest.json")
  spent = made.details["offline_flops"]
  for k in (1, 2):
    table = manifest.read(folder / f"scores/staged-{k}/manifest.json")
    of_table = table.details["offline_flops"]
    assert spent[f"scoring by staged-{k}"] == of_table[f"scoring by staged-{k}"]
  assert None not in spent.values()
  said = (folder.parent / "log.txt").read_text()
  assert "scoring by teacher" in said and "not known" not in said
  plain = manifest.read(folder / "students/miniplm/manifest.json")
  assert made.counts["steps"] == STEPS and made.counts["rows"] == 8 * STEPS
  a_step = [m.details["train_flops"] / m.counts["steps"] for m in (made, plain)]
  assert a_step[0] == pytest.approx(a_step[1])
  ours = [len(kept_rows(folder, f"staged-{k}")) for k in range(3)]
  words = f"were kept, {ours[0]} by mean_diff (log p − log p_ref, nats per "
  words += f"token), and {ours[1] + ours[2]} by student - teacher, from step 2"
  card = (folder / "selection/staged/card.md").read_text()
  assert words in card and "rows of later ones are by student - teach" in card
  assert words in (folder / "selection/staged/report.html").read_text()
  card = (folder / "students/staged/hf/README.md").read_text()
  assert "72 of" in card and "`student - teacher`" in card
  rows_of = json.loads(
    (folder / "students/staged/hf/trained_rows.json").read_text()
  )
  assert len(base64.b64decode(rows_of["hashes"])) == 8 * 72
  assert (folder / "selection/staged/materialized").exists()
  report = json.loads((folder / "report.json").read_text())
  assert report["details"]["methods"]


def test_the_library_opens_all_of_it(whole, caplog):
  folder, _ = whole
  with caplog.at_level("INFO"):
    found = mp.open_artifact(folder)
    tables = found.scores
  assert "staged-1, staged-2" in caplog.text
  assert {"teacher", "reference"} <= set(tables)
  assert tables.to_arrow().num_rows == len(tables["teacher"])
  assert tables.matrix().shape == (len(tables), len(tables["teacher"]))
  assert "η²" in str(tables.audit())
  names = {"staged", *(f"staged-{k}" for k in range(3))}
  assert names <= set(found.selections)
  part = mp.open_artifact(folder / "scores/staged-1")
  assert type(part) is type(tables["teacher"])
  assert set(part.to_arrow()["row_id"].to_pylist()) == set(means(part.path))
  for name in names:
    kept = mp.open_artifact(folder / "selection" / name)
    assert isinstance(kept, mp.Selection)
    assert kept.rows.ids.tolist() == kept_rows(folder, name)
  student = mp.open_artifact(folder / "students/staged/staged-1")
  assert isinstance(student, mp.Student)
  assert student.rows.name == "staged-1"


def test_what_is_damaged_is_made_again_by_stage_train(whole, tmp_path):
  shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
  path = tmp_path / "selection/staged-1/rows.npy"
  path.write_bytes(path.read_bytes()[:-8])
  made = manifest.read(path.parent / "manifest.json")
  with pytest.raises(UserError, match="--stages=train --force"):
    made.check_content()


class KilledError(BaseException):
  """As from kill -9: nothing is tidied up."""


def killing(monkeypatch, owner, name: str, call: int):
  """The so manieth call of a function does not return."""
  calls, function = [0], getattr(owner, name)

  def dies(*args, **how):
    calls[0] += 1
    if calls[0] == call:
      raise KilledError
    return function(*args, **how)

  monkeypatch.setattr(owner, name, dies)


def test_killed_anywhere_it_is_one_run(whole, finished, tmp_path):
  """In training, in scoring, in selecting, between, and before the first save.

  Each start dies once; the last one ends.
  """
  shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
  points = (
    (Telemetry, "add", 2),  # in the first stage
    (trained, "save", 1),  # after it, before its weights are written
    (worker.Worker, "_publish", 2),  # a part of its scores is there
    (files, "describe", 40),
    (trained, "restore_state", 1),  # as the second stage begins
    (Telemetry, "save", 2),  # in it
    (manifest.Manifest, "write", 3),  # between
    (Telemetry, "add", 3),  # in the last stage
  )
  died = 0
  for owner, name, call in points:
    with pytest.MonkeyPatch.context() as patch:
      killing(patch, owner, name, call)
      try:
        run(tmp_path, "--stages=select,train", *STAGED)
      except KilledError:
        died += 1
  run(tmp_path, "--stages=select,train", *STAGED)
  assert died >= 6
  ours, theirs = tmp_path / "run", whole[0]
  for place in ("students/staged/staged-0", "students/staged/staged-1"):
    assert (ours / place / "hf/model.safetensors").read_bytes() == (
      theirs / place / "hf/model.safetensors"
    ).read_bytes()
  assert_same_run(ours / "students/staged", theirs / "students/staged", STEPS)
  weights = [
    manifest.read(f / "students/staged/manifest.json").weights
    for f in (ours, theirs)
  ]
  assert weights[0] == weights[1]


def test_one_stage_is_the_plain_method(copy):
  """Also its weights; and a criterion without the student scores nothing."""
  one = "--config.staged.stages=1", "--config.staged.definition=mean_diff"
  fast = "--config.run.eval_every=0", "--config.run.checkpoint_every=50"
  run(
    copy, "--stages=select,train", "--config.method=staged", LONG, *one, *fast
  )
  made = []
  for name in ("miniplm", "staged"):
    rows = (copy / "run/selection" / name / "rows.npy").read_bytes()
    student = manifest.read(copy / "run/students" / name / "manifest.json")
    made.append((rows, student.weights, student.counts))
  assert made[0] == made[1]
  assert not list((copy / "run/scores").glob("staged-*"))


@pytest.mark.parametrize(
  ("argument", "words"),
  [
    ("staged.at=(5,3)", "give ascending steps"),
    ("staged.at=(5,5)", "give ascending steps"),
    ("staged.at=(0,)", "config.staged.at"),
    (f"staged.at=({STEPS},)", f"give steps before the last, {STEPS}"),
    ("staged.definition=student -", "it is no formula"),
    ("staged.definition=student - other", "no score table other"),
    ("staged.definition=foo - teacher", "fig.staged.definition=foo - t"),
    ("staged.definition=foo - teacher", "tables reference, student, teacher"),
    ("select.rows=2", "keep 2 rows, and that for steps 0 to 2 of 9 none"),
    ("score.more=('student=x',)", "no other table of scores has"),
    ("score.more=('staged-1=x',)", "no other table of scores has"),
    ("select.definition=student", "no score table student"),
    ("student.tokenizer=x", "staged needs the corpus's tokens"),
    ("select.rows=589", "there are only 588 to keep"),
  ],
)
def test_what_cannot_be_is_refused_in_one_line(copy, argument, words):
  given = "--stages=select,train", *STAGED, f"--config.{argument}"
  if "tokenizer" in argument:
    given += ("--config.student.eos_token=</s>",)
  assert words in refused(copy, *given)
  assert not (copy / "run/students/staged").exists()
  assert not list((copy / "run/selection").glob("staged*/*"))


@pytest.mark.long
def test_two_processes_of_four_devices_keep_the_same_rows(
  whole, finished, tmp_path
):
  shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
  ended(together(tmp_path, "--stages=select,train", *STAGED), 0)
  for name in ("staged-0", "staged-1", "staged-2", "staged"):
    assert kept_rows(tmp_path / "run", name) == kept_rows(whole[0], name)
