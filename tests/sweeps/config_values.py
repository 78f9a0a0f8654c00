"""Senseless values in every field of the configuration. Run by hand:

  PYTHONPATH=.:tests python tests/sweeps/config_values.py [--real]

Every value goes through the dry run's own code, in this process; with --real
some forty go through the command line, and what is not refused then runs. A
value must be refused by one line; those that may be meant, though they are
odd, may pass. Ends with 1 if one that is senseless is accepted, or if anything
but the project's own error comes out.
"""

import argparse
import collections
import contextlib
import io
import operator
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import traceback
import warnings

import tiny_config
from helpers import command, environment, rules, write_corpus
from ml_collections import ConfigDict

from miniplm_jax import pipeline
from miniplm_jax.core import distributed
from miniplm_jax.core.errors import UserError

NAN, INF = float("nan"), float("inf")
# Of no field.
NOTHING = [None, object(), b"x", {}, {"a": 1}, set(), 1j, print]
NOT_TEXTS = [*NOTHING, 3, 1.5, True, NAN, (), ("x",), "\0", "a\0b", "\ud800"]
NOT_WHOLE = [*NOTHING, "", "3", "x", NAN, INF, -INF, 0.5, 1e300, True, False]
NOT_WHOLE += [(), (3,), [], 2**63, 2**64, -(2**63) - 1, 10**30, -(10**30)]
NOT_NUMBERS = [*NOTHING, "", "0.5", NAN, INF, -INF, -1e-300, -1.0, -1e300]
NOT_NUMBERS += [1e300, 10**30, -1, (), (0.5,)]
NOT_TUPLES = [*NOTHING, "", "x", 3, 1.5, True, NAN, (None,), (NAN,), ({},)]
NOT_TUPLES += [("\0",), ("\ud800",), (b"x",), ((),), (True,), (-1,), (1.5,)]
NOT_NAMES = ["..", ".", "/", "a/b", "../x", "/x/y", "a/../../b", "-rf", "--x"]
NOT_NAMES += ["a\nb", "a b", " ", "\t", "*", "[x]", "~", "$HOME", "a" * 300]
NOT_NAMES += ["{x}", "{method.__class__}", "{0}", "a\\b", ".hidden", "a;b"]
NOT_NAMES += ["\u202ex", "a=b", "a:b", "%2e%2e", "a|b", "'a'", "x/", "C:\\x"]
NOT_WEIGHTS = ["", "a", "=", "a=", "=1", "a=-1", "a=nan", "a=inf", "a=1e999"]
NOT_WEIGHTS += ["a=-1e-9", "a=1/0", "a=x", "a=1:2:3", "1"]
# What may be meant, though it seldom is: it may be refused or not.
ODD_WHOLE = [0, -1, 1, 3, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1]
ODD_NUMBERS = [True, False, 0, 0.0, 1, 1.0, 1e-30, 1e-9, 0.5, 2.0, 1e3, 1e9]
ODD_PATHS = ["x", "~nobody/x", "a" * 5000, "é", "a b", "hf:x", "tfds:"]
ODD_PATHS += ["gs", "\u202e", "-x", "*", "[", "a=b", "{x}", "x\ny", ".."]
# Numbers that are a part of something.
SHARES = ["share", "ratio", "agreement", "spearman", "sample", "top_p", "beta"]
SHARES += ["teacher_mix", "near_duplicates", "kd.weight", "sparse_kd.weight"]
# Where a number below 0 is meant.
MAY_BE_NEGATIVE = (
  *("run.data", "run.fsdp", "run.tensor", "run.eval_every", "corpus.seed"),
)
STAGES = "tokenize,teacher,reference,score,select,train,evaluate,export"


def cases():
  """(dotted name, value, whether it is senseless)."""
  for name, rule in rules():
    name = name.removeprefix("config.")
    senseless, odd = of_kind(name, operator.attrgetter(name)(base()), rule)
    yield from ((name, v, True) for v in senseless)
    yield from ((name, v, False) for v in odd)
  yield from ((*pair, True) for pair in TOGETHER)


def of_kind(name: str, value, field):
  """Values of a field: senseless ones, and others."""
  key = name.rpartition(".")[2]
  if isinstance(value, bool):
    return [v for v in NOT_WHOLE if not isinstance(v, bool)], [True, False]
  if isinstance(value, int):
    bad = NOT_WHOLE + ([] if name in MAY_BE_NEGATIVE else [-1, -2, -(2**31)])
    bad += [-2, 0] * name.startswith(("run.data", "run.fsdp", "run.tensor"))
    bad += [-2] * (name == "run.eval_every")
    bad += [2**32] * (key == "seed" and name.startswith(("train", "generate")))
    return bad, ODD_WHOLE
  if isinstance(value, float):
    bad = NOT_NUMBERS + [1.5, 2.0, 100.0] * any(s in name for s in SHARES)
    bad += [1.0] * key.startswith("beta") + [0.0] * (key == "epsilon")
    return bad, ODD_NUMBERS
  if isinstance(value, tuple):
    bad = list(NOT_TUPLES)
    if key in ("quotas", "domain_weights"):
      bad += [(w,) for w in NOT_WEIGHTS]
    elif key == "more":
      bad += [
        (f"{n}=x",)
        for n in (*NOT_NAMES, "", "teacher", "proxy")
        if "=" not in n
      ]
      bad += [("a",), ("a=",), ("a= ",)]
    elif key == "lengths":
      bad += [(0,), (-1,), ("x",), (2**31,)]
    elif key in ("stages", "baselines", "tasks"):
      bad += [("a/b",), ("",), ("../x",), (" ",)]
    return bad, [()]
  bad = list(NOT_TEXTS)
  if field.words:
    bad += [f"{word}x" for word in field.words][:4]
    bad += [value.upper() or "X", "none ", f" {value}"] + [""] * (
      "" not in field.words
    )
  elif key in ("name", "compare_with"):
    bad += NOT_NAMES + [""] * (value != "")
    return bad, ["a", "é", "A.b-c_d"]
  elif key in ("eos_token", "bos_token"):
    bad += ["a", " ", "eos", "<", "<>", "<|x"]
  elif key == "coordinator":
    bad += ["x", "x:", ":1", "x:y", "x:123456", "a b:1"]
  elif key == "max_shard_size":
    bad += ["", "5", "5gb", "0GB", "-1GB", "5 GB", "99999999999999TB", "GB"]
  elif key == "wandb_project":
    bad += ["a/b", "a#", "%"]
  elif "revision" in key:
    bad += ["", " ", "a b"]
  elif field.path:
    return [*bad, " ", " x", "x "], ["", *ODD_PATHS]
  return bad, ["x"]


# Fields that do not go together, as dictionaries.
TOGETHER = [
  ("", changes)
  for changes in (
    {"teacher.name": "reference"},
    {"teacher.name": "proxy"},
    {"reference.name": "TEACHER"},
    {"reference.name": "teacher", "teacher.name": "reference"},
    {"score.more": ("a=x", "a=y")},
    {"baselines": ("pretrain",), "student.name": "x"},
    {"baselines": ("pretrain",), "select.name": "x"},
    {"select.ratio": 0.0},
    {"select.ratio": 0.5, "select.rows": 5},
    {"select.rows": 5, "select.tokens": 5, "select.ratio": 0.0},
    {"select.quotas": ("a=0.6:", "b=0.6:")},
    {"select.quotas": ("a=0.1:", "a=0.2:")},
    {"train.domain_weights": ("a=1", "a=2")},
    {"train.warmup_steps": 8},
    {"proxy.train.warmup_steps": 10**6},
    {"run.keep_every": 5, "run.checkpoint_every": 2},
    {"run.process_id": 1},
    {"corpus.reference_share": 0.5, "corpus.heldout_share": 0.5},
    {"corpus.vocab_size": 256},
    {"student.eos_token": "</s>"},
    {"student.bos_token": "<s>"},
    {"student.tokenizer": "x"},
    {"student.model.num_attention_heads": 3},
    {"student.model.num_key_value_heads": 3},
    {"student.model.head_dim": 7},
    {"run.compilation_cache": "corpus"},
    {"run.compilation_cache": "scores/teacher"},
    {"run.data": -1, "run.fsdp": -1},
    {"method": "minillm", "minillm.prompt_share": 0.001},
    {"method": "seqkd", "seqkd.prompt_share": 0.001},
    {"method": "vanilla_kd", "train.z_loss": 0.1},
    {"method": "proxy", "proxy.sample": 0.9, "score.share": 0.5},
    {"score.share": 0.5},
    {"sparse_kd.normalise": True},
    {"select.definition": "proxy"},
    {"plan": 3},
    {"train": None},
    {"student.model": "qwen"},
    {"student.model.family": "gpt"},
    {"student.model.family": None},
    {"trian": 1},
    {"train.stepz": 1},
    {"stages": ()},
  )
]


def base() -> ConfigDict:
  """The tests' tiny run, in which any type may be written."""
  config = tiny_config.get_config()
  # A source that a dry run can read.
  config.workdir, config.corpus.source = "/nowhere/run", "embedded"
  return ConfigDict(config.to_dict(), type_safe=False)


def changed(changes) -> ConfigDict:
  """`base` with other values by dotted name."""
  config = base()
  for name, value in changes.items():
    *folders, key = name.split(".")
    section = config
    for folder in folders:
      section = section[folder]
    section[key] = value
  return config


def outcome(config: ConfigDict) -> tuple[str, str]:
  """What the dry run makes of it: refused, accepted or traceback; in words."""
  said = io.StringIO()
  try:
    with contextlib.redirect_stdout(said):
      pipeline.run(config, "sweep", (), force=False, dry_run=True)
  except UserError as e:
    return ("refused" if "\n" not in str(e) else "traceback"), str(e)
  except Exception as e:
    if shown := distributed.explained(e):
      return "refused", str(shown)
    return "traceback", traceback.format_exc()
  said.getvalue().encode()
  return "accepted", ""


# What runs for real: values that are refused, and odd ones that are not.
REAL = """
train.learning_rate=nan train.learning_rate=0.0 train.clip_norm=-1.0
train.clip_norm=0.0 train.epsilon=0.0 train.epsilon=1e-30 train.beta2=1.5
train.beta1=0.0 train.weight_decay=inf train.seed=4294967296
train.seed=4294967295 train.batch_size=0 train.steps=1 train.warmup_steps=7
train.z_loss=1.0 corpus.seed=9223372036854775808 corpus.seed=-1
corpus.eos_token= corpus.eos_token=a corpus.max_length=2 corpus.split=
corpus.domain_field= corpus.part_bytes=1000
teacher.name=.. teacher.name=
select.name=../../x select.ratio=0.001 select.temperature=1000000.0
select.seed=9223372036854775807 select.min_length=2147483647
score.batch_tokens=1 score.rows_per_part=1000000 score.int8_least_spearman=nan
run.coordinator=x run.log_every_seconds=nan run.tensor=0 run.lost_after=-1
run.checkpoint_every=2147483647 run.hang_seconds=100000000.0
generate.temperature=1000000.0 generate.top_k=2147483647 student.name=a/b
student.model.rope_theta=inf student.model.initializer_range=10.0
"""


def really(folder: pathlib.Path) -> collections.Counter:
  """Starts the command line with each of `REAL` on a finished tiny run."""
  write_corpus(folder / "text.jsonl", 20)
  first = f"--stages={STAGES}"
  subprocess.run(command(folder, first), env=environment(), check=True)
  counts = collections.Counter()
  for flag in REAL.split():
    copy = folder / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    shutil.copy(folder / "text.jsonl", copy)
    section = flag.partition(".")[0]
    if section != "corpus":
      shutil.copytree(folder / "run", copy / "run", symlinks=True)
    stage = {
      "corpus": "tokenize",
      "teacher": "score",
      "score": "score",
      "select": "select",
      "generate": "generate",
    }.get(section, "train")
    more = ["--force"] * (stage in ("score", "select", "train"))
    more += ["--prompt=the"] * (stage == "generate")
    given = [f"--config.{flag}", f"--stages={stage}", *more]
    done = subprocess.run(
      command(copy, *given),
      env=environment(),
      capture_output=True,
      text=True,
      check=False,
      timeout=300,
    )
    lines = [s for s in done.stderr.splitlines() if s.startswith("error: ")]
    if "Traceback" in done.stderr or done.returncode not in (0, 1):
      kind = "traceback"
    else:
      kind = "refused" if len(lines) == done.returncode == 1 else "ran"
      kind = kind if done.returncode == len(lines) else "traceback"
    counts[kind] += 1
    print(f"{kind:9} {flag} {lines[-1] if lines else ''}"[:200], flush=True)
    if kind == "traceback":
      print(done.stderr[-2000:], flush=True)
  return counts


def main() -> int:
  """Prints figures, and every value that passes or breaks and must not."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--real", action="store_true")
  arguments = parser.parse_args()
  warnings.simplefilter("ignore")
  os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
  counts, wrong = collections.Counter(), 0
  for name, value, is_senseless in cases():
    changes = {name: value} if name else value
    kind, words = outcome(changed(changes))
    if kind == "accepted" and not is_senseless:
      kind = "harmless"
    counts[kind] += 1
    if kind in ("accepted", "traceback"):
      wrong += 1
      print(f"{kind}: {changes!r:.150}\n{words[-1500:]}")
  print(f"{counts.total()} values:", dict(counts))
  if arguments.real:
    with tempfile.TemporaryDirectory() as folder:
      found = really(pathlib.Path(folder))
    print(f"{found.total()} for real:", dict(found))
    wrong += found["traceback"]
  return bool(wrong)


if __name__ == "__main__":
  sys.exit(main())
