"""Rows whose ends the teacher writes, and the student that learns them."""

import collections
import dataclasses
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from helpers import LONG, refused, run
from test_convert import EOS, write_tokenizer
from test_huggingface import TRANSFORMER, new
from test_pipeline import kill

from miniplm_jax import config as config_lib
from miniplm_jax.core import manifest as manifest_lib
from miniplm_jax.core.errors import UserError
from miniplm_jax.corpus import store, trained_rows
from miniplm_jax.corpus.store import Corpus
from miniplm_jax.distillation import seqkd_rows as continuation
from miniplm_jax.models import generation, huggingface
from miniplm_jax.models.architecture import Mamba
from miniplm_jax.training import flops, metrics

PROMPT, LENGTH = 24, 32  # of tests/tiny_config.py
METHOD = "--config.method=seqkd"
STAGE = "--stages=seqkd"
BIG = dataclasses.replace(TRANSFORMER, vocab_size=512)


def manifest(folder, name):
  return manifest_lib.require(folder / "run" / name / "manifest.json")


def shards(folder, student="seqkd"):
  directory = folder / "run" / "students" / student / "generated"
  return {
    p.name: p.read_bytes()
    for p in directory.iterdir()
    if p.suffix in (".parquet", ".array_record")
  }


@pytest.fixture(scope="module")
def made(finished, tmp_path_factory):
  """The finished run with a student of seqkd, through every stage."""
  folder = tmp_path_factory.mktemp("seqkd")
  shutil.copytree(finished, folder, dirs_exist_ok=True)
  (folder / "run" / "report.json").unlink()  # of another method
  (folder / "run" / "report.html").unlink()
  stages = "--stages=select,seqkd,train,evaluate,export,report"
  both = "--config.baselines=('pretrain',)"
  export = "--config.run.export_every=100"
  done = run(folder, METHOD, both, LONG, stages, export)
  (folder / "stdout").write_text(done.stdout)
  return folder


@pytest.fixture
def ours(made, tmp_path):
  shutil.copytree(made, tmp_path, dirs_exist_ok=True)
  return tmp_path


@pytest.fixture(scope="module")
def corpus(finished):
  return Corpus(manifest(finished, "corpus"))


@pytest.mark.parametrize("name", ["hf", "hf-100"])
def test_a_student_says_which_rows_it_has_seen(made, corpus, name):
  """Those whose ends the teacher wrote anew."""
  kept = np.load(made / "run/selection/pretrain/rows.npy")
  student = epath.Path(made / "run/students/seqkd" / name)
  with pytest.raises(UserError, match=f"trained on {len(kept)} of {len(kept)}"):
    trained_rows.refuse(student, corpus, kept, "it")


def test_a_row_keeps_its_prompt_and_goes_on(made, corpus):
  found = Corpus(manifest(made, "students/seqkd/generated"))
  kept = np.load(made / "run/selection/pretrain/rows.npy")
  rows = found.read(found.rows_of("train"))
  assert [r.source_rows for r in rows] == [(i,) for i in kept]
  each = corpus.tokenizer().byte_lengths
  seen, parts = collections.Counter(), found.manifest.counts["rows_by_part"]
  for at, (row, source) in enumerate(zip(rows, corpus.read(kept))):
    assert (row.domain, row.split) == (source.domain, "train")
    assert (row.part, row.documents, row.offset) == (at // 16, (at % 16,), 0)
    assert row.hash == store.hash_of(row.ids, 10)
    scored = row.ids[1:][row.ids[:-1] != corpus.eos_id]
    assert row.n_bytes == each[scored].sum()
    if len(source.ids) <= PROMPT:
      np.testing.assert_array_equal(row.ids, source.ids)
      seen["rows_too_short"] += 1
      continue
    np.testing.assert_array_equal(row.ids[:PROMPT], source.ids[:PROMPT])
    drawn = row.ids[PROMPT:]
    assert 1 <= len(drawn) <= LENGTH + 1 - PROMPT
    assert corpus.eos_id not in drawn[:-1]
    short = len(row.ids) <= LENGTH
    assert not short or drawn[-1] == corpus.eos_id
    seen["rows_continued"] += 1
    seen["rows_ended"] += int(short)
    seen["new_tokens"] += len(drawn)
    seen["changed"] += not np.array_equal(row.ids, source.ids)
  assert seen["changed"] > 0.9 * seen["rows_continued"] > 100
  assert seen["rows_too_short"] > 10
  del seen["changed"]
  counts = found.manifest.counts
  assert seen.items() <= counts.items()
  assert counts["rows"] == len(found) == sum(parts)
  assert found.lengths.sum() == counts["tokens"]
  assert found.manifest.tokenizer == corpus.manifest.tokenizer
  found.tokenizer()


def test_nothing_is_measured_on_generated_rows(made, corpus):
  found = Corpus(manifest(made, "students/seqkd/generated"))
  for most in (0, 16):
    real, copied = corpus.heldout_rows(most), found.heldout_rows(most)
    assert len(real) == len(copied) > 0
    for a, b in zip(corpus.read(real), found.read(copied)):
      np.testing.assert_array_equal(a.ids, b.ids)
      assert (a.domain, a.n_bytes, a.hash) == (b.domain, b.n_bytes, b.hash)
  by_method = {}
  for method in ("seqkd", "pretrain"):
    path = made / "run" / "students" / method / "evaluation.json"
    by_method[method] = manifest_lib.require(path)
    assert set(by_method[method].inputs) == {"corpus", "model"}
  a, b = by_method.values()
  assert a.inputs["corpus"] == b.inputs["corpus"]
  assert a.counts == b.counts


def test_the_student_learns_from_them(made):
  folder = made / "run" / "students" / "seqkd"
  curve = [
    m["eval/loss"] for m in metrics.read(folder / "metrics") if "eval/loss" in m
  ]
  assert curve[-1] < curve[0] - 0.3
  trained = manifest_lib.require(folder / "manifest.json")
  generated = manifest_lib.require(folder / "generated" / "manifest.json")
  assert trained.inputs["generated"] == generated.fingerprint
  assert trained.counts["rows"] == generated.counts["split train"]
  assert "The teacher wrote the end" in (folder / "hf/README.md").read_text()
  assert "\nseqkd " in (made / "stdout").read_text()
  assert (made / "run" / "report.html").exists()


def settings(**changes):
  c = config_lib.default().seqkd
  with c.unlocked():
    c.update({"dtype": "float32", "batch_size": 5} | changes)
  return c


def continued(model, corpus, mesh, row_ids, **changes):
  seen = collections.Counter()
  maker = continuation.Continuation(
    model, corpus, mesh, settings(**changes), PROMPT
  )
  return [
    row.ids for row in maker.rows(row_ids, 0, seen, lambda rows, note: None)
  ]


def long_rows(corpus, n=12):
  return np.flatnonzero(corpus.lengths > PROMPT)[5 : 5 + n]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_are_those_that_generate_makes_one_by_one(
  mesh, corpus, temperature
):
  model, row_ids = new(BIG), long_rows(corpus)
  found = continued(model, corpus, mesh, row_ids, temperature=temperature)
  program = generation.compiled(
    mesh,
    sampling=generation.Sampling(LENGTH + 1 - PROMPT, temperature),
    seed=10,
    eos_ids=(corpus.eos_id,),
    vocabulary=512,
    dtype=jnp.float32,
  )
  for row_id, source, ids in zip(row_ids, corpus.read(row_ids), found):
    prompt = source.ids[None, :PROMPT]
    batch = generation.pad_left(prompt, 1, numbers=[row_id])
    alone = program(model, batch).values
    wanted = np.asarray(alone.tokens)[0, : int(alone.length[0])]
    np.testing.assert_array_equal(ids[PROMPT:], wanted)


def test_greedy_rows_are_those_of_transformers(mesh, corpus, tmp_path):
  families = pytest.importorskip("families", reason="needs the parity extra")
  theirs = families.make(vocab_size=512)
  theirs.save_pretrained(tmp_path)
  ours = huggingface.load(epath.Path(tmp_path), mesh)
  row_ids = long_rows(corpus)
  found = continued(ours, corpus, mesh, row_ids, temperature=0.0)
  for source, ids in zip(corpus.read(row_ids), found):
    prompt = families.torch.tensor(source.ids[None, :PROMPT].astype(int))
    wanted = theirs.generate(
      prompt,
      attention_mask=families.torch.ones_like(prompt),
      do_sample=False,
      max_new_tokens=LENGTH + 1 - PROMPT,
      eos_token_id=corpus.eos_id,
      pad_token_id=corpus.eos_id,
    )
    np.testing.assert_array_equal(ids, wanted[0].numpy())


def test_a_row_that_ends_stays_short(mesh, corpus):
  model, row_ids = new(BIG), long_rows(corpus, 3)
  free = continued(model, corpus, mesh, row_ids)
  end = int(free[0][PROMPT + 2])
  assert end not in free[0][PROMPT : PROMPT + 2]
  details = corpus.manifest.details | {"eos_id": end}
  other = Corpus(dataclasses.replace(corpus.manifest, details=details))
  found = continued(model, other, mesh, row_ids)
  for ids, whole in zip(found, free):
    stops = np.flatnonzero(whole[PROMPT:] == end)
    size = PROMPT + stops[0] + 1 if len(stops) else LENGTH + 1
    np.testing.assert_array_equal(ids, whole[:size])


def test_logits_that_are_not_finite_name_the_row(mesh, corpus, tmp_path):
  model = jax.tree.map(lambda w: w * jnp.nan, new(BIG))
  row_ids = long_rows(corpus)
  maker = continuation.Continuation(model, corpus, mesh, settings(), PROMPT)
  seen = collections.Counter()
  found = maker.rows(row_ids, 0, seen, lambda rows, note: None)
  directory = epath.Path(tmp_path / "new")
  with pytest.raises(UserError, match=f"not finite in row {row_ids[0]},"):
    store.write_shard(directory, store.shard_names(0, 1), found, seen)
  assert not list(directory.iterdir())


@pytest.mark.parametrize(
  "arch",
  [
    BIG,
    Mamba(
      vocab_size=9, hidden_size=4, intermediate_size=8, num_hidden_layers=2
    ),
  ],
  ids=["transformer", "mamba"],
)
def test_the_cost_is_that_of_every_step(arch, prompt=7, new_tokens=5):
  """Position t attends to t + 1/2 positions, as `forward_flops` has it."""
  head = 2 * arch.vocab_size * arch.hidden_size
  steps = sum(
    arch.body_flops(2 * t + 1) for t in range(prompt + new_tokens - 1)
  )
  found = flops.generation(arch, prompt, new_tokens)
  assert found == steps + new_tokens * head


def test_kills_and_another_batch_change_nothing(ours, made):
  wanted = shards(made)
  assert len(wanted) > 10
  folder = "students/{}/generated"
  other = "--config.student.name=other", "--config.seqkd.batch_size=5"
  run(ours, METHOD, LONG, STAGE, *other)
  assert shards(ours, "other") == wanted
  shutil.rmtree(ours / "run" / folder.format("seqkd"))
  given = METHOD, LONG, STAGE
  for number, code, part in (
    (signal.SIGKILL, -signal.SIGKILL, 2),
    (signal.SIGTERM, 143, 8),
  ):
    appears = f"{folder.format('seqkd')}/index-{part:05d}-*"
    assert kill(ours, appears, number, *given) == code
    assert not (ours / "run/students/seqkd/generated/manifest.json").exists()
  done = run(ours, *given)
  assert "resuming" in done.stdout
  assert shards(ours) == wanted
  found, old = (manifest(f, folder.format("seqkd")) for f in (ours, made))
  assert found.counts == old.counts
  assert found.fingerprint == old.fingerprint
  (cost,) = found.details[flops.OFFLINE].values()
  assert found.details == old.details | {"seconds": found.details["seconds"]}
  assert cost > 0


def test_what_was_made_otherwise_is_refused(ours):
  given = METHOD, LONG
  hot = "--config.seqkd.temperature=0.5"
  for stage in ("seqkd", "train"):
    error = refused(ours, *given, f"--stages={stage}", hot)
    assert "settings.temperature is 1.0 there and 0.5 here" in error
    other = f"--config.teacher.path={ours / 'run' / 'reference' / 'hf'}"
    error = refused(ours, *given, f"--stages={stage}", other)
    # By the teacher's scores, and by the rows that it wrote.
    assert "scored by weights" in error or "inputs.weights" in error
  table = ours / "scores.npy"
  table.write_bytes(b"x")
  error = refused(ours, *given, f"--config.teacher.scores={table}")
  assert "teacher.scores" in error
  assert "seqkd runs it" in error
  own = f"--config.student.tokenizer={ours}", "--config.student.eos_token=</s>"
  assert "student.conversion" in refused(ours, *given, *own)
  short = "--config.seqkd.prompt_share=0.01"
  assert "prompt_share" in refused(ours, *given, short)


def test_fewer_rows_are_taken_as_training_takes_them(ours):
  kept = np.load(ours / "run/selection/pretrain/rows.npy")
  for name, flags, wanted in (
    ("few", ("--config.train.steps=3",), kept[np.arange(24) * len(kept) // 24]),
    ("first", ("--config.seqkd.rows=5", "--noconfig.train.shuffle"), kept[:5]),
  ):
    run(ours, METHOD, STAGE, f"--config.student.name={name}", *flags)
    found = Corpus(manifest(ours, f"students/{name}/generated"))
    rows = found.read(found.rows_of("train"))
    assert [r.source_rows[0] for r in rows] == wanted.tolist()


def test_a_student_with_its_own_tokenizer(ours):
  write_tokenizer(ours / "own", 400)
  run(
    ours,
    METHOD,
    "--stages=seqkd,convert,train,evaluate",
    "--config.student.name=own",
    f"--config.student.tokenizer={ours / 'own'}",
    f"--config.student.eos_token={EOS}",
    "--config.student.conversion=one_to_one",
  )
  generated = Corpus(manifest(ours, "students/own/generated"))
  converted = Corpus(manifest(ours, "students/own/corpus"))
  old, now = generated.tokenizer(), converted.tokenizer()
  assert converted.manifest.counts["split train"] == 64  # steps × batch
  for row in converted.read(converted.rows_of("train")[:20]):
    (source,) = generated.read(row.source_rows)
    text = old.decode(source.ids[source.ids != old.eos_id])
    ours_too = now.decode(row.ids[row.ids != now.eos_id])
    assert text.startswith(ours_too[:-1])
