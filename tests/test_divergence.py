"""How far a student is from its teacher, beside sums over all texts."""

import dataclasses
import functools
import itertools
import json
import math
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from etils import epath
from flax import nnx
from helpers import edited, refused, run
from scipy import stats
from test_api import content

import miniplm_jax as mp
from miniplm_jax.core.errors import UserError
from miniplm_jax.corpus.tokenizer import Tokenizer
from miniplm_jax.evaluation import divergence
from miniplm_jax.evaluation.texts import TextModel
from miniplm_jax.models import huggingface, sharding
from miniplm_jax.models.architecture import Transformer
from miniplm_jax.models.decoder import Decoder

END = "<|end|>"
BYTES = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())


def engine(alphabet, merges=()):
  """Byte-level BPE: its ids are END, the alphabet, what is merged."""
  words = [END, *alphabet, *map("".join, merges)]
  model = tokenizers.models.BPE({w: i for i, w in enumerate(words)}, [*merges])
  made = tokenizers.Tokenizer(model)
  made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(False, False)
  made.decoder = tokenizers.decoders.ByteLevel()
  made.add_special_tokens([END])
  return made


@functools.cache
def model(seed, alphabet="abc", merges=(), spread=0.3):
  """A model with a head that is far from uniform, and its tokenizer."""
  own = engine(alphabet, merges)
  arch = Transformer(
    vocab_size=own.get_vocab_size(),
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    tie_word_embeddings=False,
    initializer_range=spread,
  )
  mesh = sharding.make_mesh(1, 1, 1)
  with jax.set_mesh(mesh):
    decoder = jax.jit(lambda: Decoder(arch, nnx.Rngs(seed), jnp.float32))()
  folder = epath.Path(f"model {seed}")
  return TextModel(decoder, own, mesh, folder, "float32", 0, None)


def reader(*how, size=64, **more):
  return divergence.Reader(model(*how, **more), size)


@jax.jit
def logits(decoder, ids):
  hidden = decoder(ids, dtype=jnp.float32)
  rows = decoder.arch.vocab_size
  return jnp.einsum("btd,vd->btv", hidden, decoder.head_VxD[:rows])


def log_probs(of, ids):
  """Of what follows each of some ids, float64 [ids, V], without a cache."""
  padded = np.zeros((1, 24), np.int32)  # what follows is not seen
  padded[0, : len(ids)] = ids
  with jax.set_mesh(of.mesh):
    found = np.asarray(logits(of.decoder, padded), np.float64)[0, : len(ids)]
  return found - np.log(np.exp(found).sum(-1, keepdims=True))


def log_p(of, context, ids):
  """Of some ids after a context."""
  found = log_probs(of, (*context, *ids))
  return sum(found[len(context) - 1 + i][x] for i, x in enumerate(ids))


def texts_of(size, ids, most):
  """All that can be drawn: with an end, or of so many ids without one."""
  for n in range(most):
    for own in itertools.product(range(1, ids), repeat=n):
      yield (*own, 0)
  yield from itertools.product(range(1, ids), repeat=most)


def test_estimates_hold_what_all_texts_come_to():
  """Two starts, three letters, up to three of them: 80 texts in all."""
  q, p, starts = reader(1), reader(2), ["a", "cb"]
  exact = {"q": np.zeros(4), "p": np.zeros(4)}
  for start in starts:
    context = (0, *("abc".index(letter) + 1 for letter in start))
    for ids in texts_of(4, 4, 3):
      log_q, log_of_p = (log_p(r.model, context, ids) for r in (q, p))
      letters = sum(x != 0 for x in ids)
      for name, own in ("q", log_q), ("p", log_of_p):
        terms = [log_q - log_of_p, -log_q, len(ids), letters]
        exact[name] += math.exp(own) / 2 * np.array(terms)
  n = 6000
  teacher = divergence.Teacher(p, p.write(starts, n, 3, 10))
  assert [sample.start for sample in teacher.written[:3]] == ["a", "cb", "a"]
  found = divergence.measure(q, teacher, 3, 11)
  (kl, _, tokens, letters), bits = exact["q"], math.log(2)
  assert kl > 0.2
  assert_holds(found.reverse_kl_per_token, kl / tokens)
  assert_holds(found.reverse_kl, kl / bits / letters)
  assert found.tokens / n == pytest.approx(tokens, rel=0.05)
  assert found.n_bytes / n == pytest.approx(letters, rel=0.05)
  difference, nll, tokens, letters = exact["p"]
  assert_holds(found.forward_kl_per_token, -difference / tokens)
  assert_holds(found.forward_kl, -difference / bits / letters)
  assert_holds(found.forward_nll_per_token, nll / tokens)
  assert_holds(found.forward_nll, nll / bits / letters)
  assert 0 < found.ended < 1 and found.not_canonical == 0


def assert_holds(estimate, exact):
  value, low, high = estimate
  assert low < exact < high and high - low < 0.2 * exact, (estimate, exact)
  assert value == pytest.approx((low + high) / 2)


def test_of_itself_it_is_exactly_none():
  p = reader(1)
  written = p.write(["a"], 40, 20, 10)
  found = divergence.measure(reader(1), divergence.Teacher(p, written), 20, 11)
  assert set(found.reverse_kl + found.forward_kl) == {0.0}
  assert set(found.reverse_kl_per_token) == {0.0} and found.forward_nll.value


def test_models_of_other_tokens_read_the_text():
  """Each by its own ids, after its own start; beside sums by hand."""
  merges = ("a", "b"), ("ab", "c")
  q, p = reader(3), reader(4, merges=merges)
  teacher = divergence.Teacher(p, p.write(["a", "b"], 30, 8, 10))
  found = divergence.measure(q, teacher, 9, 11)
  assert found.reverse_kl_per_token is None
  assert found.forward_kl_per_token is None
  own = q.write(["a", "b"], 30, 9, 11)
  letters = {"a": 1, "b": 2, "c": 3}

  def of_q(text):
    return [letters[x] for x in text]

  def of_p(text):  # abc, ab, and letters, from the left: no other merges
    words = re.findall("abc|ab|a|b|c", text)
    return [letters.get(w) or {"ab": 4, "abc": 5}[w] for w in words]

  spelled = []
  for samples, name in (own, "reverse"), (teacher.written, "forward"):
    nll, size = [], []
    for sample in samples:
      start, text = sample.start, sample.text
      assert text == q.model.engine.decode(of_q(text)) or sample in own
      whole = of_p(start + text)  # a start that goes on is read alone
      after = whole[1:] if whole[0] == of_p(start)[0] else of_p(text)
      end = [0] * sample.is_ended
      nll.append(
        (
          -log_p(q.model, (0, *of_q(start)), (*of_q(text), *end)),
          -log_p(p.model, (0, *of_p(start)), (*after, *end)),
        )
      )
      size.append(len(text))
      if name == "forward":
        spelled.append(sample.ids == after)
    of_one, of_other = np.array(nll).T
    less = of_other - of_one if name == "reverse" else of_one - of_other
    kl = getattr(found, f"{name}_kl").value
    assert kl == pytest.approx(less.sum() / sum(size) / math.log(2), rel=1e-4)
    if name == "forward":
      loss = of_one.sum() / sum(size) / math.log(2)
      assert found.forward_nll.value == pytest.approx(loss, rel=1e-4)
  assert spelled == [p.is_canonical(sample) for sample in teacher.written]
  assert found.not_canonical == 0 < np.mean(spelled) < 1


def test_a_text_ends_before_bytes_that_are_none():
  """Where it is read as text; where its ids are, they count."""
  q = reader(5, alphabet=tuple(BYTES))
  first, second = q.model.engine.encode("é").ids
  letter = q.model.engine.encode("x").ids
  cut = q.sample("a", [*letter, first], False)
  whole = q.sample("a", [*letter, first, second], True)
  inside = q.sample("a", [*letter, first, *letter], True)
  assert whole.readable() == whole and whole.text == "xé" and whole.n_bytes == 3
  for sample in cut, inside:
    assert sample.readable().text == "x" and not sample.readable().is_ended
    assert q.is_canonical(sample)
  assert inside.n_bytes == 3
  nothing = q.sample("a", [first], False).readable()
  nll, tokens = q.nll([nothing, cut.readable(), cut, whole], by_text=True)
  assert tokens.tolist()[:2] == [0, 1] and nll[0] == 0 < nll[1]
  nll, tokens = q.nll([cut, whole, inside], by_text=False)
  assert tokens.tolist() == [2, 4, 4]
  context = (0, *q.model.engine.encode("a").ids)
  wanted = -log_p(q.model, context, (*letter, first, second, 0))
  assert nll[1] == pytest.approx(wanted, rel=1e-5)
  teacher = divergence.Teacher(q, [nothing] * 2)
  with pytest.raises(UserError, match="none of 2 samples has text"):
    divergence.measure(q, teacher, 1, 0)


def test_a_long_text_is_read_in_windows():
  """Each id once; the start is context alone."""
  q, text = reader(1, size=8), "abcabcbaccab"
  ids = tuple("abc".index(x) + 1 for x in text)
  (nll,), (n,) = q.nll([q.sample("ab", ids, True)], by_text=False)
  whole = (0, 1, 2, *ids, 0)
  # As `texts.windows`: eight, four more after four and one, the rest after six.
  wanted = -log_p(q.model, whole[:3], whole[3:9])
  wanted -= log_p(q.model, whole[4:9], whole[9:13])
  wanted -= log_p(q.model, whole[7:13], whole[13:])
  assert n == 13 and nll == pytest.approx(wanted, rel=1e-5)
  assert max(len(s.ids) for s in q.write(["ab"], 20, 50, 0)) <= 6
  with pytest.raises(UserError, match="leaves no room in 8 inputs"):
    q.write(["ab" * 8], 2, 5, 0)


def test_texts_start_as_held_out_rows_do():
  """With their first words, whatever stands before those."""
  own = Tokenizer(engine(BYTES), END, "here")
  texts = {3: "the cat", 5: f"{END} a", 8: "\n ", 9: f"é{END}b", 11: "x" * 50}

  def ids(text):
    ends = [i for part in text.split(END) for i in (0, *own.encode([part])[0])]
    return np.array(ends[1:])

  rows = {i: types.SimpleNamespace(ids=ids(text)) for i, text in texts.items()}
  corpus = types.SimpleNamespace(
    tokenizer=lambda: own,
    heldout_rows=lambda most, ignored: [*texts][:most],
    read=lambda ids: [rows[i] for i in ids],
    directory="here",
  )
  wanted = ["the", "a", "é", "x" * 40]
  assert divergence.first_words(corpus, 5) == wanted
  texts.clear()
  with pytest.raises(UserError, match="no held-out rows"):
    divergence.first_words(corpus, 5)


def test_a_mean_has_the_interval_of_students_t():
  values = np.random.default_rng(0).normal(3, 2, 50)
  value, low, high = divergence.ratio(values, np.ones(50))
  wanted = stats.t.interval(0.95, 49, values.mean(), stats.sem(values))
  assert (low, high) == pytest.approx(wanted) and value == values.mean()
  # Of values in proportion to their units nothing is uncertain.
  units = np.arange(1.0, 9)
  assert divergence.ratio(units * 0.5, units) == pytest.approx((0.5,) * 3)


def directory(folder, of):
  """A Hugging Face directory of a model."""
  files = Tokenizer(of.engine, END, "here").to_files()
  huggingface.save(epath.Path(folder), of.decoder, 0, files, "float32")
  return str(folder)


def test_given_models_are_measured(tmp_path):
  """The texts of a student's samples are scored as `mp.nll` does."""
  q, p = model(3), model(4, merges=(("a", "b"),))
  q, p = directory(tmp_path / "q", q), directory(tmp_path / "p", p)
  how = {"samples": 12, "tokens": 10, "starts": ["ca"]}
  found = mp.divergence(q, p, **how)
  assert found == mp.divergence(q, p, **how)
  own = reader(3).write(["ca"], 12, 10, 10)
  assert found.n_bytes == sum(len(sample.text) for sample in own)
  # Of a text that nothing is before, all is scored, but for its end.
  found = mp.divergence(q, p, samples=12, tokens=1)
  texts = [s for s in reader(4, merges=(("a", "b"),)).write([""], 12, 1, 10)]
  scored = mp.nll(q, [s.text for s in texts if s.text])
  ends = -log_p(model(3), (0,), (0,)) * sum(s.is_ended for s in texts)
  bits = (sum(s.nll_sum for s in scored) + ends) / math.log(2)
  n = sum(len(s.text) for s in texts)
  assert found.forward_nll.value == pytest.approx(bits / n, rel=1e-5)
  for wrong, words in (
    ({"samples": 1}, "samples is 1"),
    ({"tokens": 0}, "tokens is 0"),
    ({"starts": [3]}, "no texts"),
  ):
    with pytest.raises(UserError, match=re.escape(words)):
      mp.divergence(q, p, **wrong)


ASKED = "--config.evaluation.divergence=6"
STAGE = "--stages=evaluate", "--config.baselines=pretrain"


def test_stage_evaluate_measures_students(copy):
  """Once; anew after a training, not with other settings, whatever generate."""
  workdir = copy / "run"
  long = "--config.train.steps=100"
  run(copy, *STAGE, long, ASKED)
  folder, teacher = workdir / "students/miniplm", workdir / "scores/teacher"
  lines = (teacher / "samples.jsonl").read_text().splitlines()
  assert len(lines) == 6 and all(json.loads(x)["start"] for x in lines)
  made = json.loads((folder / "divergence.json").read_text())
  before = content(workdir)
  said = run(copy, *STAGE, long, ASKED, "--config.generate.temperature=0.1")
  assert content(workdir) == before and "skipped" in said.stderr + said.stdout
  # As it is in the library.
  student = mp.open_artifact(folder)
  how = {"samples": 6, "dtype": "float32", "batch_tokens": 256}
  found = mp.divergence(student, mp.open_artifact(workdir / "teacher"), **how)
  kept = made["details"]["divergence"]
  assert kept == json.loads(json.dumps(dataclasses.asdict(found)))
  for path in folder / "divergence.json", teacher / "samples.json":
    path.unlink()
  leaks = ("temperature=0", "top_p=0.1", "top_k=1", "seed=3", "samples=2")
  run(copy, *STAGE, long, ASKED, *(f"--config.generate.{x}" for x in leaks))
  assert (teacher / "samples.jsonl").read_text().splitlines() == lines
  again = json.loads((folder / "divergence.json").read_text())
  assert again["details"]["divergence"] == kept
  other = "--config.evaluation.divergence=7"
  assert "settings.samples" in refused(copy, *STAGE, long, other)
  with edited(folder / "divergence.json") as old:
    old["inputs"]["model"] = "of another training"
    old["details"]["divergence"] = {}
  error = refused(copy, "--stages=report", *STAGE[1:], long, ASKED)
  assert "name the model that it was made from" in error
  run(copy, "--stages=evaluate,report", *STAGE[1:], long, ASKED)
  again = json.loads((folder / "divergence.json").read_text())
  assert again["details"]["divergence"] == kept
  page = (workdir / "report.html").read_text()
  assert "Divergence from the teacher" in page
  assert f"{found.reverse_kl.value:.4f}" in page
  for flags, words in (
    (["--config.evaluation.divergence=1"], "of one there is no interval"),
    ([ASKED, "--config.teacher.scores=x"], "it writes samples"),
  ):
    assert words in refused(copy, *STAGE, *flags)


def test_stage_compare_has_it_by_seed(copy):
  flags = (
    "--stages=compare",
    "--config.compare.criteria=easy=-teacher",
    "--config.compare.seeds=10,11",
    "--config.train.steps=8",
    "--config.evaluation.divergence=5",
  )
  run(copy, *flags)
  path = copy / "run/compare/compare.json"
  found = json.loads(path.read_text())["criteria"]
  by_seed = {}
  for name, one in found.items():
    made = [
      json.loads(
        (copy / f"run/students/{name}-s{seed}/divergence.json").read_text()
      )
      for seed in (10, 11)
    ]
    for key in "reverse_kl", "forward_nll":
      values = [x["details"]["divergence"][key][0] for x in made]
      by_seed[name, key] = np.array(values)
      wanted = stats.t.interval(0.95, 1, np.mean(values), stats.sem(values))
      assert one[f"{key}_by_seed"] == values
      assert (one[f"{key}_low"], one[f"{key}_high"]) == pytest.approx(wanted)
      less = by_seed[name, key] - by_seed["random", key]
      assert one[f"{key}_delta"] == pytest.approx(less.mean())
  table = (copy / "run/compare/table.csv").read_text()
  assert f"{found['easy']['reverse_kl']}" in table
  # Without it, nobody is trained or selected again.
  before = content(copy / "run/students")
  run(copy, *flags[:-1])
  assert content(copy / "run/students") == before
  assert "reverse_kl" not in json.loads(path.read_text())["criteria"]["easy"]


@pytest.mark.long
def test_a_student_of_other_tokens_is_measured(copy):
  """Its corpus's ids are none of the teacher's."""
  other = copy / "tokenizer"
  directory(other, model(6, alphabet=tuple(BYTES)))
  flags = (
    f"--config.student.tokenizer={other}",
    f"--config.student.eos_token={END}",
    "--config.student.name=other",
    "--config.train.steps=8",
  )
  run(copy, "--stages=convert,train,evaluate", *flags, ASKED)
  path = copy / "run/students/other/divergence.json"
  found = json.loads(path.read_text())["details"]["divergence"]
  assert found["reverse_kl_per_token"] is None
  value, low, _ = found["forward_nll"]
  assert 6 < low < value < math.log2(300) and found["forward_kl"][1] > 0
