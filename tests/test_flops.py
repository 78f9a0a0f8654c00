"""FLOPs: closed forms, equal budgets, and the comparison of methods."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import pytest
import tiny_config
from etils import epath
from flax import nnx
from helpers import CONFIG, LONG, run, typed

from miniplm_jax import config as config_lib
from miniplm_jax.config import MiniLLMConfig
from miniplm_jax.core import decide, files, manifest
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.workdir import Workdir
from miniplm_jax.corpus.store import Corpus
from miniplm_jax.methods import OBJECTIVES
from miniplm_jax.models import architecture, config_json, head, hub
from miniplm_jax.models.architecture import Mamba, Transformer
from miniplm_jax.models.decoder import Decoder
from miniplm_jax.training import budget, flops
from miniplm_jax.trainings import Trainings

SMALL = Transformer(
  vocab_size=10,
  hidden_size=4,
  intermediate_size=6,
  num_hidden_layers=2,
  num_attention_heads=2,
  num_key_value_heads=1,
)
OTHER = Mamba(
  vocab_size=10, hidden_size=4, intermediate_size=8, num_hidden_layers=1
)
# A layer: q and o 4·4, k and v 4·2, SwiGLU 3·4·6.
WEIGHTS = 2 * (2 * 16 + 2 * 8 + 72)
HEAD = 2 * 10 * 4


def by_position(length: int, first: int = 0) -> float:
  """The body of SMALL on positions `first` up to `length`, one by one.

  Position i attends to i + 1/2 on average: half of its own product counts.
  """
  attention = sum(2 * 4 * 4 * (i + 0.5) for i in range(first, length))
  return 2 * WEIGHTS * (length - first) + attention


def paper_steps(method: str, student: float, teacher: float) -> float:
  """Steps for the FLOPs of 100,000, as the paper counts them: by parameters.

  A forward pass takes 2·N, training 6·N. MiniLLM samples from the mixture of
  student and teacher, so both do one pass more [inferred from 4·N_s + 2·N_t].
  """
  cost = {
    "vanilla_kd": 3 * student + teacher,
    "minillm": 4 * student + 2 * teacher,
  }
  return 3 * student * 100_000 / cost[method]


@pytest.mark.parametrize(
  ("method", "wanted"),
  [("vanilla_kd", (25.0, 45.5, 66.7)), ("minillm", (13.6, 26.8, 42.9))],
)
def test_steps_of_the_paper(method, wanted):
  """What docs/training.md says; rounded in the paper's table of baselines.

  There 25K, 45K, 65K; 15K, 30K, 40K.
  """
  for size, thousands in zip((0.2e9, 0.5e9, 1.2e9), wanted):
    assert round(paper_steps(method, size, 1.8e9) / 1000, 1) == thousands


def test_closed_forms_equal_counts_by_position():
  length, prompt = 16, 12
  forward = by_position(length) / length + HEAD
  assert flops.row(SMALL, length) == length * forward
  assert flops.row(SMALL, length, 3) == by_position(length) + 3 * HEAD
  assert flops.next_token(SMALL, length) == 3 * forward
  teacher = OTHER.forward_flops(length)
  cost = flops.TokenCost(SMALL, OTHER, length)

  def asked(objective, section=None):
    return OBJECTIVES[objective].token_flops(cost, section)

  assert asked("soft_labels") == 3 * forward + teacher
  assert asked("token_selection") == 4 * forward
  made = flops.generation(SMALL, prompt, 4)
  # Prefill and its last position's logits, then three tokens one by one.
  decoded = sum(by_position(i + 1, i) + HEAD for i in range(prompt, 15))
  assert made == pytest.approx(by_position(prompt) + HEAD + decoded)
  assert flops.generation(SMALL, prompt, 0) == 0
  body = OTHER.body_flops(length)
  by_hand = (
    (made + 3 * (by_position(length) + 4 * HEAD) + 3 * 4 * HEAD)
    + (15 * body + 2 * 4 * HEAD)
    + 3 * length * forward
  )
  found = flops.minillm(SMALL, OTHER, prompt, 4)
  assert found == pytest.approx(by_hand / length)
  section = MiniLLMConfig(prompt_share=prompt / length)
  assert asked("minillm", section) == found


def test_rows_are_counted_without_padding():
  total = flops.rows(SMALL.forward_flops, [3, 5, 3])
  assert total == 2 * flops.row(SMALL, 3) + flops.row(SMALL, 5)


@pytest.mark.parametrize("passes", [1, 3])
def test_compiled_programs_take_as_much(mesh, passes):
  """One layer, so that no loop hides work; short, so that weights rule."""
  arch = Transformer(
    vocab_size=512,
    hidden_size=256,
    intermediate_size=704,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
  )
  rows, length = 8, 16

  def forward(model, tokens):
    hidden = model(tokens).reshape(-1, arch.hidden_size)
    return jnp.sum(head.logits(hidden, model.head_VxD, arch.vocab_size) ** 2)

  model = nnx.eval_shape(lambda: Decoder(arch, nnx.Rngs(0)))
  tokens = jax.ShapeDtypeStruct((rows, length), jnp.int32)
  function = forward if passes == 1 else jax.grad(forward)
  compiled = jax.jit(function).lower(model, tokens).compile()
  counted = compiled.cost_analysis()["flops"]
  wanted = passes * rows * flops.row(arch, length)
  assert counted == pytest.approx(wanted, rel=0.02)


def test_teachers_of_the_paper_need_no_hub(monkeypatch):
  monkeypatch.setattr(hub, "resolve", None)
  shape = hub.shape_of("Qwen/Qwen1.5-1.8B", "main")
  assert shape.parameters() == 1_836_828_672


@pytest.mark.parametrize("method", ["vanilla_kd", "minillm"])
def test_a_finished_student_needs_its_teacher_no_more(tmp_path, method):
  config, given = tiny_config.get_config(), tmp_path / "given"
  config.method, config.teacher.path = method, str(given)
  config.equal_flops = True
  place = Workdir(epath.Path(tmp_path))
  given.mkdir()
  teacher = dataclasses.replace(SMALL, vocab_size=512, hidden_size=64)
  files.write_json(
    given / "config.json", config_json.write(teacher, 0, "float32")
  )
  (given / "model.safetensors").write_bytes(b"weights")
  for folder in (place.corpus, place.selection("pretrain")):
    folder.mkdir(parents=True)
    manifest.Manifest(folder / "manifest.json", "", {}, {}).write()
  trainings = Trainings(typed(config), place)
  names = typed(config).names_of(method)
  one = trainings.student_step(names)
  token = trainings.student(names).objective.token_flops
  steps = one.settings["train"]["steps"]
  assert steps < config.train.steps
  made = dataclasses.replace(
    one.expected(),
    counts={"tokens": 77 * steps},
    details={"train_flops": token * 77 * steps},
  )
  shutil.rmtree(given)
  with pytest.raises(UserError, match="no model directory here"):
    trainings.student_step(names)
  made.path.parent.mkdir(parents=True)
  made.write()
  one = trainings.student_step(names)
  assert str(decide.decide(one)) == "done"


def test_a_budget_is_spent_and_the_warmup_stays_its_share_of_it():
  config = typed(config_lib.default())
  shape, length = config.student.model, config.corpus.max_length
  plain = flops.next_token(shape, length)

  def steps(times: float) -> tuple[int, int]:
    train = budget.affordable(config.train, shape, length, times * plain)
    return train.warmup_steps, train.steps

  whole = 2000, 100_000
  assert [steps(t) for t in (0, 1)] == [whole, whole]
  assert [steps(t) for t in (3, 4)] == [(666, 33_333), (500, 25_000)]
  assert [steps(t) for t in (1e3, 1e9)] == [(2, 100), (0, 1)]


def test_unknown_parts_stay_unknown():
  parts = {"scoring by a": 2e9, "training of b": None}
  assert flops.in_words(parts) == (
    "before it scoring by a 2e+09, training of b not known"
  )
  assert flops.in_words({"x": 1e9, "y": 1e9}).startswith("before it 2e+09 (x")
  assert flops.in_words({}) == "nothing before it"
  assert flops.spent({"scoring by c": None}) == {"scoring by c": None}


# A method whose step costs four times as much, on rows that are there.
DEAR = """
import miniplm_jax.methods as methods_lib

methods_lib.OBJECTIVES["dear"] = methods_lib.Objective(
  words="the next-token loss, at four times its cost",
  token_flops=lambda cost, _: 4 * cost.training,
)
methods_lib.METHODS["dear"] = methods_lib.Method("miniplm", None, "dear")
"""


@pytest.fixture
def dear(tmp_path):
  path = tmp_path / "dear.py"
  path.write_text(CONFIG.read_text() + DEAR)
  return path


def test_a_dearer_method_takes_fewer_steps(tmp_path, dear):
  planned = "--config.method=dear", "--stages=train", "--dry_run"
  told = run(tmp_path, *planned, LONG, config=dear).stdout
  assert "25 steps (100 of the next-token loss)" in told
  assert "before it" not in told  # of which nothing is known yet
  told = run(
    tmp_path, *planned, LONG, "--config.equal_flops=False", config=dear
  ).stdout
  assert "100 steps ×" in told


def test_methods_are_compared_at_equal_cost(copy, dear):
  """Through the stages that follow training, and in the report."""
  methods = "--config.method=dear", "--config.baselines=('miniplm','pretrain')"
  stages = "--stages=train,evaluate,export,report"
  done = run(copy, *methods, stages, LONG, config=dear)
  root = copy / "run"
  body = json.loads((root / "report.json").read_text())["details"]["methods"]
  page = (root / "report.html").read_text()
  assert list(body) == ["dear", "miniplm", "pretrain"]
  for name, line in body.items():
    folder = root / "students" / name
    trained = manifest.read(folder / "manifest.json")
    loss = manifest.read(folder / "evaluation.json").details["loss"]["all"]
    assert line["steps"] == trained.settings["train"]["steps"]
    assert line["steps"] == trained.counts["steps"]
    assert line["train_flops"] == trained.details["train_flops"]
    assert line["offline_flops"] == trained.details["offline_flops"]
    assert line["loss"] == loss["instance_mean"]
    assert line["seconds"] == trained.details["seconds"]
    assert line["last_loss"] < line["first_loss"]
    for cell in (f"{line['train_flops']:.3g}", f"{line['loss']:.4f}"):
      assert cell in done.stdout and cell in page
    assert f"{line['train_flops']:.3g} FLOPs" in (
      (folder / "hf/README.md").read_text()
    )
  assert [line["steps"] for line in body.values()] == [25, 100, 100]
  spent = {line["train_flops"] for line in body.values()}
  assert max(spent) == pytest.approx(min(spent))
  assert body["pretrain"]["offline_flops"] == {}
  _check_offline(root, body["dear"]["offline_flops"])


def _check_offline(root, parts):
  """D by both models and the reference's training, counted here again."""
  corpus = Corpus(manifest.read(root / "corpus/manifest.json"))
  lengths = [int(corpus.lengths[i]) - 1 for i in corpus.rows_of("train")]
  wanted = {}
  for role in ("teacher", "reference"):
    trained = manifest.read(root / role / "manifest.json")
    arch = architecture.Transformer(**trained.settings["model"])
    total = sum(n * arch.forward_flops(n) for n in lengths)
    wanted[f"scoring by {role}"] = total
  steps = trained.settings["train"]["steps"]
  tokens = steps * trained.settings["train"]["batch_size"] * corpus.max_length
  plain = 3 * arch.forward_flops(corpus.max_length)
  assert trained.stage == "reference"
  wanted["training of reference"] = plain * tokens
  assert parts == pytest.approx(wanted)
