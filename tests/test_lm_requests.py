"""What lm_eval may ask of a model: honored, or refused in one line."""

import functools
import itertools
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from etils import epath
from test_huggingface import TRANSFORMER, new, saved

from miniplm_jax.config import DocumentsConfig, EvaluationConfig
from miniplm_jax.core.errors import UserError
from miniplm_jax.corpus import tokenizer
from miniplm_jax.evaluation import harness, tasks, texts
from miniplm_jax.models import sharding

jax_lm = pytest.importorskip(
  "miniplm_jax.evaluation.lm", reason="needs the eval extra"
)
EOS = "<|endoftext|>"
DRAWN = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 4}


@functools.cache
def encoder():
  texts = ["the é was é and the cat sat on the é. " * 30]
  return tokenizer.train(texts, 290, EOS)


def make(bos="", model=None):
  """A model of 300 rows; its tokenizer puts `bos` in front."""
  engine = tokenizers.Tokenizer.from_str(encoder()._engine.to_str())
  engine.add_special_tokens(["<s>"])
  ours = tokenizer.Tokenizer(engine, EOS, "here", bos)
  mine = texts.TextModel(
    model or new(TRANSFORMER),
    ours.text_engine(),
    sharding.make_mesh(1, 1, 1),
    epath.Path("here"),
    "float32",
    end_id=ours.eos_id,
    bos_id=ours.bos_id,
  )
  return jax_lm.JaxLM(mine, batch_tokens=64, max_length=32)


@pytest.fixture(scope="module")
def lm():
  return make()


@pytest.fixture(scope="module")
def broken():
  """A model with NaN in its weights."""
  return make(model=jax.tree.map(lambda x: x * jnp.nan, new(TRANSFORMER)))


def ask(*arguments, document=3):
  from lm_eval.api.instance import Instance

  return Instance(
    request_type="",
    doc={},
    arguments=arguments,
    idx=0,
    metadata=("mine", document, 1),
  )


def test_nothing_asked_is_nothing_answered(lm):
  assert lm.loglikelihood([]) == lm.loglikelihood_rolling([]) == []
  assert lm.generate_until([]) == []


def test_nan_is_no_answer(broken):
  for answer, request in (
    (broken.loglikelihood, ask("the", " cat")),
    (broken.loglikelihood_rolling, ask("the cat")),
    (broken.generate_until, ask("the cat", {"max_gen_toks": 2})),
    (broken.generate_until, ask("the cat", DRAWN)),
  ):
    with pytest.raises(UserError, match="task mine, document 3"):
      answer([request])


def test_a_text_without_a_token_is_named_with_its_document(lm):
  assert lm.tok_encode("e\u0301") == lm.tok_encode("é")
  with pytest.raises(UserError, match=r"has 0 tokens.*task mine, document 3"):
    lm.loglikelihood([ask("the", " cat"), ask("e", "\u0301")])
  with pytest.raises(UserError, match="0 tokens"):
    lm.loglikelihood([ask("", "")])


def test_a_token_that_the_model_has_no_row_for_is_refused(lm):
  few = make(model=new(TRANSFORMER))
  few._engine.add_tokens([f"<{i}>" for i in range(60)])
  with pytest.raises(UserError, match="beyond the model's 300 rows"):
    few.tok_encode("the <59>")


@pytest.mark.parametrize("bos", ["", "<s>"])
def test_a_rolling_text_is_scored_once_after_its_beginning(bos):
  lm = make(bos)
  text = "the cat sat on the é."
  for given in (text, bos + text):
    ((alone, _),) = lm.loglikelihood([ask("", given)])
    (rolling,) = lm.loglikelihood_rolling([ask(given)])
    assert rolling == pytest.approx(alone, abs=1e-4)
  assert lm.tok_encode(bos + text) == lm.tok_encode(text)


@pytest.mark.parametrize("size", [1, 3, 8, 9, 40])
def test_windows_are_lm_eval_s(size):
  from lm_eval import utils

  for n in (1, 8, 9, 25):
    theirs = utils.get_rolling_token_windows([*range(n)], -1, size, 1)
    theirs = map(utils.make_disjoint_window, theirs)
    assert [*texts.windows(range(n), -1, size)] == [*theirs]


def test_overlapping_windows_are_lm_eval_s_of_a_longer_context():
  from lm_eval import utils

  for size, overlap, n in itertools.product((3, 8), (0, 1, 2), (1, 8, 9, 25)):
    theirs = utils.get_rolling_token_windows([*range(n)], -1, size, overlap + 1)
    theirs = map(utils.make_disjoint_window, theirs)
    assert [*texts.windows(range(n), -1, size, overlap)] == [*theirs]


def test_nll_of_texts_is_what_a_rolling_request_says(tmp_path):
  from miniplm_jax.evaluation.lm import DirectoryLM

  saved(tmp_path, extra=encoder().to_files())
  mesh = sharding.make_mesh(1, 1, 1)
  model = texts.TextModel.load(epath.Path(tmp_path), mesh, "float32")
  given = ["the cat sat on the é.", "the cat " * 9]
  how = DocumentsConfig(max_length=8, overlap=0.0)
  score = texts.TextScorer(model, how, texts.RowScorer(model, 16_384))
  scores = score(given)
  lm = DirectoryLM(str(tmp_path), max_length="8", data="1", fsdp="1")
  rolling = lm.loglikelihood_rolling([ask(text) for text in given])
  assert [-score.nll_sum for score in scores] == pytest.approx(rolling)
  assert [score.n_bytes for score in scores] == [22, 72]
  ids = [lm.tok_encode(text, add_special_tokens=False) for text in given]
  assert [score.n_tokens for score in scores] == [*map(len, ids)]
  assert score([EOS, "", given[0]])[:2] == [
    (None, None, len(EOS), "it has only special tokens"),
    (None, None, 0, "it is empty"),
  ]


def test_what_is_repeated_is_drawn_anew_and_nothing_else_matters(lm):
  """Neither batches, nor calls, nor other requests."""
  request = ask("the cat", DRAWN)
  found = make().generate_until([request] * 12)
  assert len(set(found)) == 12
  other = make()
  calls = [other.generate_until([request] * 4) for _ in range(3)]
  assert [text for made in calls for text in made] == found
  other.generate_until([ask("on the", DRAWN)] * 3)
  wide = make()
  wide._batch_tokens = 4096
  mixed = [ask("on the", DRAWN), request, ask("the", DRAWN), request]
  assert wide.generate_until(mixed)[1::2] == found[:2]


@pytest.mark.parametrize(
  "setting",
  [
    {"num_beams": 4},
    {"repetition_penalty": 1.3},
    {"min_p": 0.1},
    {"no_repeat_ngram_size": 2},
    {"nonsense": "x"},
    {"top_p": 1.5},
    {"temperature": -1.0},
    {"max_new_tokens": 0, "max_gen_toks": None},
  ],
)
def test_settings_of_generation_are_not_ignored(lm, setting):
  with pytest.raises(UserError, match=f"{'|'.join(setting)}.*of mine"):
    lm.generate_until([ask("the", DRAWN | setting)])


def test_settings_that_change_nothing_may_be_given(lm):
  plain = {"max_gen_toks": 4, "until": ["\n"]}
  same = {"num_beams": 1, "repetition_penalty": 1.0, "min_p": None}
  (wanted,) = lm.generate_until([ask("the", plain)])
  assert lm.generate_until([ask("the", plain | same)]) == [wanted]


def test_the_hub_is_there_again_after_a_task_without_it(lm, tmp_path):
  datasets = pytest.importorskip("datasets")
  hub = pytest.importorskip("huggingface_hub").constants
  before = datasets.config.HF_HUB_OFFLINE, hub.HF_HUB_OFFLINE
  with pytest.raises(UserError, match="the hub, offline"):
    given = EvaluationConfig(task_data=str(tmp_path), offline=True)
    tasks.run(lm, "winogrande", given)
  assert before == (datasets.config.HF_HUB_OFFLINE, hub.HF_HUB_OFFLINE)


def test_chat_templates_are_refused(lm):
  assert lm.chat_template(False) == ""
  with pytest.raises(UserError, match="--apply_chat_template"):
    lm.chat_template(True)


def test_arguments_of_the_command_are_known_or_refused(tmp_path):
  from miniplm_jax.evaluation.lm import DirectoryLM

  files = encoder().to_files()
  saved(tmp_path, extra=files)
  lm = DirectoryLM(
    str(tmp_path), max_length="16", device="cuda", trust_remote_code=True
  )
  assert lm.max_length == 16
  assert np.isfinite(lm.loglikelihood([ask("the", " cat")])[0][0])
  for name, value in (
    ("add_bos_token", False),
    ("dtype", "float7"),
    ("max_length", "long"),
  ):
    with pytest.raises(UserError, match=f"--model_args {name}={value}"):
      DirectoryLM(str(tmp_path), **{name: value})


@pytest.mark.parametrize(
  "given",
  [
    ["--tasks", "miniplm"],
    ["--tasks=miniplm"],
    ["-t", "miniplm"],
    ["--tasks", "wikitext,miniplm", "--limit", "3"],
    ["--tasks=wikitext,miniplm", "--include_path", "miniplm"],
    ["--tasks", "wikitext", "miniplm", "--limit=3"],
  ],
)
def test_the_command_has_the_papers_group(given):
  path = str(pathlib.Path(harness.__file__).with_name("miniplm.yaml"))
  found = harness.with_group(given)
  tasks = [
    name
    for argument in found
    for name in argument.removeprefix("--tasks=").split(",")
  ]
  assert path in tasks and pathlib.Path(path).exists()
  assert [a.replace(path, "miniplm") for a in found] == given
  assert given[-1] == found[-1] or "miniplm" in given[-1]


def test_what_is_asked_and_cut_is_counted():
  lm, long = make(), "the cat sat on " * 9
  asked = [
    types.SimpleNamespace(args=(text, choice), task_name=task, doc_id=i)
    for task, texts in (("t", ("the cat", long)), ("one", ("the",)))
    for i, text in enumerate(texts)
    for choice in (" sat", " on", " is")[: 1 if task == "one" else 3]
  ]
  lm.loglikelihood(asked)
  ids = len(lm.tok_encode(long)) + 1
  assert ids > lm.max_length + 1
  counts = lm.asked["t"]
  assert (counts["requests"], counts["cut"]) == (6, 3)
  assert counts["guessed"] == pytest.approx(1 / 3 + 1 / 3)
  assert lm.asked["one"] == {"requests": 1, "cut": 0, "guessed": 0}
