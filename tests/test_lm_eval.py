"""Our lm_eval model and lm_eval's own, and tasks by stage evaluate.

Documents here are written for the tests: they have the format of the real
tasks, and say nothing about a model.
"""

import importlib.util
import json
import math
import subprocess
import sys
import types
from unittest import mock

import numpy as np
import pytest
from etils import epath
from helpers import ROOT, environment, lm_eval_model, run, typed
from tiny_config import get_config

from miniplm_jax.config import EvaluationConfig
from miniplm_jax.config.sections import GROUP, PAPER_TASKS
from miniplm_jax.core.errors import UserError
from miniplm_jax.corpus import store
from miniplm_jax.evaluation import tasks, tasks_step
from miniplm_jax.report import tasks_report_step as tasks_table

needs_lm_eval = pytest.mark.skipif(
  not importlib.util.find_spec("lm_eval"), reason="needs the eval extra"
)
ENDINGS = ["a small boat on the river", "the red roof", "bread", "two old men"]


def documents(i: int) -> dict[str, dict]:
  """A document of each task, in the form that its dataset has."""
  labels = {"text": ENDINGS, "label": list("ABCD")}
  question = f"What did they see on day {i}?"
  return {
    "hellaswag": {
      "ind": i,
      "activity_label": "Rowing",
      "ctx_a": f"On day {i} they rowed home.",
      "ctx_b": "they saw",
      "endings": ENDINGS,
      "label": str(i % 4),
    },
    "lambada_openai": {"text": f"On day {i} they went to the river to row"},
    "winogrande": {
      "sentence": f"Day {i}: the boat hit the roof because _ was low.",
      "option1": "the boat",
      "option2": "the roof",
      "answer": str(1 + i % 2),
    },
    "openbookqa": {
      "id": str(i),
      "question_stem": question,
      "choices": labels,
      "answerKey": "ABCD"[i % 4],
    },
    "arc_easy": {
      "id": str(i),
      "question": question,
      "choices": labels,
      "answerKey": "ABCD"[i % 4],
    },
    "arc_challenge": {
      "id": str(i),
      "question": question,
      "choices": labels,
      "answerKey": "ABCD"[(i + 1) % 4],
    },
    "piqa": {
      "goal": f"Row for {i} days",
      "sol1": ENDINGS[0],
      "sol2": ENDINGS[1],
      "label": i % 2,
    },
    "social_iqa": {
      "context": f"They rowed for {i} days.",
      "question": "How did they feel?",
      "answerA": "tired",
      "answerB": "two old men",
      "answerC": "as red as a roof",
      "label": str(1 + i % 3),
    },
    "storycloze_2018": {
      "story_id": str(i),
      **{f"input_sentence_{n}": f"They rowed {n}." for n in range(1, 5)},
      "sentence_quiz1": "They slept.",
      "sentence_quiz2": "Bread rowed.",
      "answer_right_ending": 1 + i % 2,
    },
  }


SPLITS = {"lambada_openai": "test", "openbookqa": "test", "arc_easy": "test"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """task_data of all nine, five documents each, in several formats."""
  import pyarrow as pa
  import pyarrow.parquet as pq

  folder = tmp_path_factory.mktemp("task_data")
  for task in PAPER_TASKS:
    rows = [documents(i)[task] for i in range(5)]
    split = SPLITS.get(task, "validation")
    here = folder / task
    here.mkdir()
    if task == "piqa":  # as the hub has them
      table = pa.Table.from_pylist(rows)
      pq.write_table(table, here / f"{split}-00000-of-00001.parquet")
    else:
      lines = [json.dumps(row) + "\n" for row in rows]
      (here / f"{split}.jsonl").write_text("".join(lines))
  return folder


@pytest.fixture(scope="module")
def directory(finished):
  return finished / "run" / "students" / "miniplm" / "hf"


@pytest.fixture(scope="module")
def ours(directory):
  lm = pytest.importorskip("miniplm_jax.evaluation.lm")
  return lm.DirectoryLM(str(directory), batch_tokens=256, max_length=32)


@pytest.fixture(scope="module")
def theirs(directory):
  return lm_eval_model(directory, 4, 32)


def requests(kind, *arguments):
  from lm_eval.api.instance import Instance

  return [
    Instance(request_type=kind, doc={}, arguments=a, idx=0, metadata=("", 0, 1))
    for a in arguments
  ]


TEXTS = [
  ("The statement is", " executed in a loop"),
  ("The statement is ", "executed"),
  ("", "Without a context"),
  ("A context that is longer than the rows of the model. " * 6, " The end"),
  ("if x:", "\n  return None"),
]


@needs_lm_eval
@pytest.mark.parity
def test_log_likelihoods_are_those_of_hf(ours, theirs):
  asked = requests("loglikelihood", *TEXTS)
  found, wanted = ours.loglikelihood(asked), theirs.loglikelihood(asked)
  # Every id after a context: one of them is what greedy decoding gives.
  context = ours.tok_encode("The statement")
  asked = [(None, context, [i]) for i in range(512)]
  found += ours._loglikelihood_tokens(asked)
  wanted += theirs._loglikelihood_tokens(asked)
  np.testing.assert_allclose(
    [f[0] for f in found], [w[0] for w in wanted], atol=1e-4
  )
  assert [f[1] for f in found] == [w[1] for w in wanted]
  assert sum(f[1] for f in found[len(TEXTS) :]) == 1


@needs_lm_eval
@pytest.mark.parity
def test_rolling_log_likelihoods_are_those_of_hf(ours, theirs):
  """Also of a text that begins with an end of text, which is no BOS."""
  ends = "<|endoftext|><|endoftext|>after it"
  assert ours.tok_encode(ends)[:2] == 2 * [ours.eot_token_id]
  texts = "Short.", "Windows of a text. " * 20, ends
  asked = requests("loglikelihood_rolling", *((text,) for text in texts))
  np.testing.assert_allclose(
    ours.loglikelihood_rolling(asked),
    theirs.loglikelihood_rolling(asked),
    atol=1e-4 * 20,  # of some 200 tokens
    rtol=1e-6,
  )


@needs_lm_eval
@pytest.mark.parity
def test_what_is_generated_is_that_of_hf(ours, theirs):
  until = {"until": ["\n", " the"], "max_gen_toks": 8}
  asked = requests(
    "generate_until",
    ("The value of", until),
    ("x", until),
    ("if the", {"max_gen_toks": 6, "until": [], "do_sample": False}),
    ("A prompt that is longer than what is left of a row. " * 6, until),
  )
  found = ours.generate_until(asked)
  assert found == theirs.generate_until(asked)
  assert any(found) and not any("\n" in text for text in found[:2])


@needs_lm_eval
@pytest.mark.parity
def test_the_nine_tasks_have_the_metrics_of_hf(ours, theirs, data):
  """Of perplexities their logarithms: losses of whole texts are compared.

  3e-4 nats of the worst of five texts are 3e-4 of its perplexity, and so of
  the bootstrapped error.
  """
  for task in PAPER_TASKS:
    given = EvaluationConfig(task_data=str(data), offline=True)
    found = tasks.run(ours, task, given)
    assert found["n-samples"][task]["effective"] == 5
    wanted = tasks.run(theirs, task, given)["results"][task]
    for name, value in found["results"][task].items():
      if "perplexity" in name:
        loss = math.log(wanted[name])
        assert math.log(value) == pytest.approx(loss, rel=1e-4), (task, name)
      elif isinstance(value, float):
        assert value == pytest.approx(wanted[name], rel=1e-4), (task, name)
      else:
        assert value == wanted[name]
    metric, _ = tasks.score(found["results"][task])
    normed = ("hellaswag", "openbookqa", "arc_easy", "arc_challenge", "piqa")
    assert metric == ("acc_norm" if task in normed else "acc"), task


@needs_lm_eval
def test_stage_evaluate_writes_tables_and_results_of_lm_eval(copy, data):
  flags = [
    "--stages=evaluate,report",
    "--config.baselines=('pretrain',)",
    "--config.train.steps=100",
    f"--config.evaluation.tasks=('{GROUP}',)",
    f"--config.evaluation.task_data={data}",
    "--config.evaluation.offline=True",
  ]
  done = run(copy, *flags)
  for text in ("| model | hellaswag acc_norm |", "average |", "41.3%"):
    assert text in done.stdout
  student = copy / "run" / "students" / "miniplm"
  body = json.loads((student / "lm_eval.json").read_text())
  scores = [tasks.score(body["results"][t])[1] for t in PAPER_TASKS]
  average = body["groups"][GROUP]["acc_norm_or_acc,none"]
  assert average == pytest.approx(np.mean(scores))
  assert body["n-samples"]["piqa"] == {"original": 5, "effective": 5}
  assert "Zero-shot tasks" in (copy / "run" / "report.html").read_text()
  # What is done stays done; one that was lost is made again.
  (student / "tasks" / "piqa.json").unlink()
  again = run(copy, *flags)
  assert again.stdout.count(" by miniplm\n") == 1
  assert json.loads((student / "lm_eval.json").read_text()) == body


@needs_lm_eval
@needs_lm_eval
def test_a_model_is_held_for_the_tasks_of_one_config(tmp_path, monkeypatch):
  from miniplm_jax.evaluation import lm as jax_lm

  made, asked = [], []

  def make(dtype, **_):
    made.append(dtype)
    return types.SimpleNamespace(dtype=dtype, asked={})

  def answer(model, *_):
    asked.append(model.dtype)
    return {"results": {}, "n-samples": {}}

  monkeypatch.setattr(jax_lm, "JaxLM", make)
  monkeypatch.setattr(tasks, "run", answer)
  monkeypatch.setattr(store, "open_corpus", mock.MagicMock())
  model = types.SimpleNamespace(fingerprint="a", weights="b")
  subject = mock.MagicMock(folder=epath.Path(tmp_path), corpus={}, checks=())
  subject.text_model = lambda inputs, mesh, dtype: dtype
  config = get_config()
  config.evaluation.tasks = "piqa", "arc_easy"
  for config.evaluation.dtype in ("float32", "bfloat16"):
    c = typed(config)
    runner = tasks_step.Runner(c.evaluation, 8, 64, c.run)
    for step in runner.steps([subject]):
      step.run({"model": model})
  assert made == ["float32", "bfloat16"]
  assert asked == ["float32", "float32", "bfloat16", "bfloat16"]


def test_what_cannot_be_had_is_told_with_what_to_do(
  ours, tmp_path, monkeypatch
):
  def told(name):
    with pytest.raises(UserError) as e:
      given = EvaluationConfig(task_data=str(tmp_path), offline=True)
      tasks.run(ours, name, given)
    return str(e.value)

  (tmp_path / "piqa").mkdir()
  (tmp_path / "piqa" / "notes.txt").write_text("")
  assert "no files of a split" in told("piqa") and "validation" in told("piqa")
  (tmp_path / "piqa" / "validation.csv").write_text("goal\n")
  (tmp_path / "piqa" / "validation.json").write_text("[]")
  assert "2 formats" in told("piqa")
  assert "docs/evaluation.md" in told("winogrande")
  assert "offline" in told("winogrande")
  few = tasks._manager(False)  # all of them take 15 s
  monkeypatch.setattr(tasks, "_manager", lambda everything: few)
  assert "no task nonsense" in told("nonsense")


@needs_lm_eval
def test_the_command_knows_the_model_and_the_group(directory, data, tmp_path):
  (tmp_path / "story.yaml").write_text(
    f"task: story\ndataset_path: json\ndataset_kwargs:\n  data_files:\n"
    f"    validation: {data}/storycloze_2018/validation.jsonl\n"
    "output_type: multiple_choice\nvalidation_split: validation\n"
    "doc_to_text: '{{input_sentence_4}}'\n"
    "doc_to_target: '{{answer_right_ending-1}}'\n"
    "doc_to_choice: '{{[sentence_quiz1, sentence_quiz2]}}'\n"
  )
  code = (
    "import sys; from miniplm_jax.evaluation import harness;"
    "code = harness.main(sys.argv[1:]); assert not code, code"
  )
  arguments = [f"--model_args=pretrained={directory}", "--model=miniplm_jax"]
  arguments += ["--tasks", "story", "--limit=4", "--include_path"]
  arguments += [str(tmp_path), f"--output_path={tmp_path}"]
  done = subprocess.run(
    [sys.executable, "-c", code, *arguments],
    capture_output=True,
    text=True,
    env=environment(),
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert "|story" in done.stdout
  (found,) = tmp_path.glob("*/results_*.json")
  assert json.loads(found.read_text())["config"]["model"] == "miniplm_jax"


def test_the_group_of_the_command_is_that_of_the_config():
  text = (ROOT / "miniplm_jax" / "evaluation" / "miniplm.yaml").read_text()
  listed = [line[4:] for line in text.splitlines() if line.startswith("  - ")]
  assert tuple(listed) == PAPER_TASKS


@needs_lm_eval
def test_eight_devices_give_the_answers_of_one_without_torch(
  directory, data, ours
):
  code = f"""
import json, sys
from lm_eval.api.instance import Instance
from miniplm_jax.config import EvaluationConfig
from miniplm_jax.evaluation import lm, tasks
mesh = {{"data": 2, "fsdp": 2, "tensor": 2}}
model = lm.DirectoryLM({str(directory)!r}, max_length=32, **mesh)
def ask(kind, a):
  return Instance(request_type=kind, doc={{}}, arguments=a, idx=0,
                  metadata=("", 0, 1))
asked = [ask("loglikelihood", tuple(a)) for a in {TEXTS!r}]
print(json.dumps(model.loglikelihood(asked)))
settings = {{"until": ["\\n"], "max_gen_toks": 8}}
print(json.dumps(model.generate_until([ask("g", ("The", settings))])))
few = {{"offline": True, "documents": 2}}
few = EvaluationConfig(task_data={str(data)!r}, **few)
found = tasks.run(model, "piqa", few)
print(json.dumps([found["n-samples"]["piqa"]["effective"]]))
print(json.dumps(list({{"torch", "transformers"}} & set(sys.modules))))
"""
  flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
  done = subprocess.run(
    [sys.executable, "-c", code],
    capture_output=True,
    text=True,
    env=environment() | flags,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  found, text, n, torch = map(json.loads, done.stdout.splitlines()[-4:])
  assert (n, torch) == ([2], [])
  wanted = ours.loglikelihood(requests("loglikelihood", *TEXTS))
  np.testing.assert_allclose(
    [f[0] for f in found], [w[0] for w in wanted], atol=1e-4
  )
  assert [f[1] for f in found] == [w[1] for w in wanted]
  settings = {"until": ["\n"], "max_gen_toks": 8}
  asked = requests("generate_until", ("The", settings))
  assert text == ours.generate_until(asked)


def test_tasks_without_a_folder_are_of_the_hub_whatever_else_has_one(tmp_path):
  (tmp_path / "piqa").mkdir()
  (tmp_path / "piqa" / "validation.jsonl").write_text("{}")

  def seen(data, task):
    return tasks_step._documents(str(data), task)()

  assert seen(tmp_path, "arc_easy") == seen("", "arc_easy")
  assert seen(tmp_path, "piqa") != seen("", "piqa")


def test_tasks_say_their_documents_chance_error_and_what_was_cut():
  asked = {
    "piqa": {"requests": 4, "cut": 0, "guessed": 2 / 2},
    "arc": {"requests": 9, "cut": 3, "guessed": 1 / 4 + 1 / 5},
    "lambada": {"requests": 1, "cut": 0, "guessed": 0},
  }
  samples = {name: {"original": 9, "effective": 2} for name in asked}
  assert tasks_table.notes(asked, samples) == [
    "piqa: 2 documents, chance 50.0%.",
    "arc: 2 documents, chance 22.5%; 3 of 9 requests lost their beginning, see "
    "evaluation.max_length.",
    "lambada: 2 documents.",
  ]
  metrics = {"piqa": {"acc,none": 0.625, "acc_stderr,none": 0.125}}
  ((_, cell),) = tasks_table.table({"miniplm": metrics}, {}).cells()
  assert cell == "62.5% ± 12.5%"


def test_the_average_is_the_plain_mean_by_the_paper_s_rule():
  both = {"acc,none": 0.1, "acc_stderr,none": 0.9, "acc_norm,none": 0.2}
  assert tasks.score(both) == ("acc_norm", 0.2)
  assert tasks.score({"acc,none": 0.3}) == ("acc", 0.3)
  assert tasks.score({"perplexity,none": 9.0}) is None
  nine = {task: both for task in PAPER_TASKS} | {"piqa": {"acc,none": 0.65}}
  assert tasks.average(tasks.scores(nine)) == pytest.approx(0.25)
  assert tasks.error(both) is None  # 0.9 is that of acc
  assert tasks.error({"acc,none": 0.3, "acc_stderr,none": 0.1}) == 0.1
  table = tasks_table.table({"miniplm": nine}, {})
  (row,) = table.cells()
  told = dict(zip(table.titles, row))
  assert told["average"] == "25.0%" and told["paper's Qwen 200M"] == "41.3%"
  # Not of a part of the documents, which is said; nor without all nine.
  read = {task: {"original": 5, "effective": 5} for task in PAPER_TASKS}
  assert tasks_table.table({"miniplm": nine}, read) == table
  read["piqa"]["effective"] = 2
  cut = tasks_table.table({"miniplm": nine}, read).titles
  assert "piqa acc (2 of 5)" in cut and cut[-1] == "average (in part)"
  assert "hellaswag acc_norm" in cut
  del nine["piqa"]
  assert "average" not in tasks_table.table({"miniplm": nine}, {}).titles
