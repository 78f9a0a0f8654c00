"""Recipes of docs/data.md run as they stand; links and commands hold."""

import ast
import collections
import itertools
import pathlib
import re
import shlex
import textwrap

import numpy as np
import pyarrow.parquet as pq
import pytest
from absl import flags
from helpers import ROOT, documented, execute

import miniplm_jax as mp
from miniplm_jax import cli, main, pipeline
from miniplm_jax import config as config_lib
from miniplm_jax.core.errors import UserError
from miniplm_jax.models import hub


def columns(folder, pattern="*.parquet"):
  table = pq.read_table(sorted(folder.glob(pattern)))
  return {name: table[name].to_numpy() for name in table.column_names}


@pytest.fixture
def scores(demo):
  """Both tables and the index's columns of the rows of D, by plain numpy."""
  teacher = columns(demo / "scores" / "teacher")
  reference = columns(demo / "scores" / "reference")
  index = columns(demo / "corpus", "index-*.parquet")
  found = {k: v[teacher["row_id"]] for k, v in index.items()}
  for role, table in (("teacher", teacher), ("reference", reference)):
    np.testing.assert_array_equal(table["row_id"], teacher["row_id"])
    found |= {role: table["nll_sum"], f"{role}_n": table["n_tokens"]}
  score = found["reference"] / found["reference_n"]
  score -= found["teacher"] / found["teacher_n"]
  return found | {"row_id": teacher["row_id"], "score": score}


def recipe(heading):
  (code,) = documented("data.md", heading)
  return code


def test_duckdb(scores):
  pytest.importorskip("duckdb")
  code = recipe("DuckDB: bits per byte of both models, by domain")
  rows = execute(code)["table"].fetchall()
  assert len(rows) == 2
  for domain, n, *found in rows:
    here = scores["domain"] == domain
    assert n == here.sum()
    bits = [scores[m][here].sum(dtype=float) for m in ("teacher", "reference")]
    wanted = np.array(bits) / np.log(2) / scores["n_bytes"][here].sum()
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_pandas(scores):
  pd = pytest.importorskip("pandas")
  made = execute(recipe("pandas: a score and its domain"))
  table = made["table"]
  for domain in "even", "odd":
    here = scores["domain"] == domain
    assert (table["domain"] == domain).sum() == here.sum()
    ours = table.nll_sum[table["domain"] == domain].sum()
    assert ours == pytest.approx(scores["teacher"][here].sum(dtype=float))
  import miniplm_jax as mp

  same = mp.open_artifact("runs/demo/scores/teacher").to_pandas()
  pd.testing.assert_frame_equal(
    same.reset_index(drop=True), made["scores"].reset_index(drop=True)
  )


def test_polars(scores):
  pytest.importorskip("polars")
  code = recipe("Polars: the score by domain, with quantiles")
  table = execute(code)["table"]
  assert table["domain"].to_list() == ["even", "odd"]
  for row in table.iter_rows(named=True):
    score = scores["score"][scores["domain"] == row["domain"]]
    assert row["rows"] == len(score)
    np.testing.assert_allclose(row["mean"], score.mean(), rtol=1e-5)
    for q in (0.1, 0.5, 0.9):
      wanted = np.quantile(score, q, method="nearest")
      np.testing.assert_allclose(row[f"q{q:.0%}"], wanted, rtol=0.02)


def test_datasets(scores, monkeypatch, tmp_path):
  datasets = pytest.importorskip("datasets")
  heading = "Hugging Face datasets: the rows that the teacher values most"
  code = recipe(heading)
  monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
  best = execute(code)["best"]
  order = np.argsort(-scores["score"], kind="stable")
  found = np.array(best["score"])
  np.testing.assert_allclose(found, scores["score"][order], rtol=1e-5)
  assert set(best["row_id"][:10]) == set(scores["row_id"][order[:10]])


@pytest.mark.parametrize(
  "page",
  [
    "howto_corpus",
    "howto_criterion",
    pytest.param("howto_student", marks=[pytest.mark.parity, pytest.mark.long]),
  ],
)
def test_python_of_the_how_to_pages(page, demo, capsys):
  """As it stands, on a finished run in the reader's workdir."""
  mine = demo.parent / "mine"
  if not mine.exists():
    mine.symlink_to(demo.resolve())
  blocks = re.findall(
    r"^```python\n(.*?)^```$",
    (ROOT / "docs" / f"{page}.md").read_text(),
    re.M | re.S,
  )
  assert blocks
  if page == "howto_student":
    pytest.importorskip("torch", reason="needs the parity extra")
  execute("\n".join(blocks))
  said = capsys.readouterr().out
  assert said.strip()
  if page == "howto_corpus":  # the best row is kept
    assert said.strip().endswith("True")


# ---- what pages say that there is

PAGES = sorted(
  [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("gcp/*.md")]
)
BLOCK = re.compile(r"^```(\w*).*?\n(.*?)^```$", re.M | re.S)
# Of others: what they take is not known here.
FOREIGN = {
  *(".", "cat", "cd", "cp", "done", "docker", "git", "gcloud", "hf", "mkdir"),
  *("pip", "pre-commit", "seqio_cache_tasks", "tar", "unzip", "uv", "xz"),
  *("$pip", "split", "export", "for"),
}


def test_python_of_pages_names_what_there_is():
  """Also what is not run: it parses, and the library has its functions."""
  seen = 0
  for page in PAGES:
    for language, block in BLOCK.findall(page.read_text()):
      if language == "python":
        for node in ast.walk(ast.parse(textwrap.dedent(block))):
          if (
            isinstance(node, ast.Attribute) and ast.unparse(node.value) == "mp"
          ):
            assert node.attr in mp.__all__, (page, node.attr)
            seen += 1
  assert seen > 20


def anchors(page: pathlib.Path) -> set[str]:
  """What GitHub calls the headings of a page."""
  found = collections.Counter()
  names = set(re.findall(r'<a (?:id|name)="([^"]+)"', page.read_text()))
  for title in re.findall(r"^#+ (.*)$", BLOCK.sub("", page.read_text()), re.M):
    title = re.sub(r"\]\([^)]*\)", "]", title).lower()
    name = re.sub(r"[^\w\- ]", "", title).replace(" ", "-")
    names.add(f"{name}-{found[name]}" if found[name] else name)
    found[name] += 1
  return names


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_go_to_what_is_there(page):
  text = re.sub(r"`[^`\n]*`", "", BLOCK.sub("", page.read_text()))
  for target in re.findall(r"\]\(([^()\s]+)\)", text):
    if re.match(r"\w+:", target):
      continue
    name, _, mark = target.partition("#")
    path = page.parent / name if name else page
    assert path.exists(), target
    assert path.resolve().is_relative_to(ROOT), target
    if mark and path.suffix == ".md":
      assert mark in anchors(path), target


def commands(text: str):
  """Yields the commands of a block, each as a list of words."""
  for name, first in re.findall(r"^for (\w+) in (\S+)", text, re.M):
    text = text.replace(f"${name}", first)
  for line in text.replace("\\\n", " ").splitlines():
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
    lexer.whitespace_split = True
    for is_end, words in itertools.groupby(lexer, lambda w: w[0] in ";&|"):
      words = list(words)
      while words and re.fullmatch(r"\w+=.*|do|!", words[0], re.S):
        words.pop(0)
      if words and not is_end:
        yield words


def documented_commands(page: pathlib.Path):
  """Those of its blocks, and those that begin in a line as one of ours."""
  text = page.read_text()
  for language, block in BLOCK.findall(text):
    if block.startswith("--config."):  # of one command
      block = block.replace("\n", " ")
    if language in ("sh", "bash", "console") or (
      not language and re.match(r"python|miniplm |make", block)
    ):
      yield from commands(block)
  for code in re.findall(r"`([^`\n]+)`", BLOCK.sub("", text)):
    ours = re.match(r"(make|miniplm|pytest|python -m|gcp/tpu.sh) ", code)
    if ours and not re.search(r"…|\b(CONFIG|STAGE)\b", code):
      yield from commands(code)


def check_run(arguments, given):
  """Stages, fields and values of a run are those that there are."""
  if not any(word.startswith("--config=") for word in arguments):
    arguments = ["--config=500m", *arguments]
  given.clear()
  main.run(["miniplm", *arguments], flags.FlagValues())
  config, stages = given
  if not config.workdir:
    config.workdir = "run"
  config_lib.from_dict(config, "here")
  known = config_lib.STAGES + config_lib.ON_REQUEST + config_lib.LOOKS
  assert set(stages) <= set(known)


def check_module(name: str, arguments):
  """A program of ours is there, and has the flags that it is given."""
  path = ROOT / name.replace(".", "/")
  files = [path.with_suffix(".py"), *path.glob("*.py")]
  files = [file for file in files if file.exists()]
  assert files, name
  text = "".join(file.read_text() for file in files)
  for word in arguments:
    if word.startswith("--") and name.startswith("benchmarks"):
      flag = word[2:].partition("=")[0]
      assert f'"{flag}"' in text or f'"--{flag}"' in text, (name, flag)


def check(words, given):
  name, *rest = words
  name = name.removeprefix(".venv/bin/")
  if name == "make":
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
    assert {word for word in rest if "=" not in word} <= set(targets)
  elif re.fullmatch(r"python[\d.]*", name):
    if rest[0] == "-m" and rest[1] == "miniplm_jax.main":
      check_run(rest[2:], given)
    elif rest[0] == "-m":
      ours = rest[1].startswith(("miniplm_jax.", "benchmarks"))
      assert ours or rest[1] in ("venv", "pip", "http.server")
      if ours:
        check_module(rest[1], rest[2:])
    else:  # ASSETS and such stand for folders of the reader
      assert rest[0].split("/")[0].isupper() or (ROOT / rest[0]).exists()
  elif name == "miniplm":
    if rest[0] not in ("--help", "nll"):
      check_run(cli.arguments(rest), given)
  elif name.startswith("--config."):
    check_run(words, given)
  elif name == "pytest":
    file = ROOT / rest[0].partition("::")[0]
    assert file.exists() or rest[0] == "tests/test_x.py"
    own = (ROOT / "tests" / "conftest.py").read_text()
    assert all(f'"{w}"' in own for w in rest if w.startswith("--"))
  elif name == "gcp/tpu.sh":
    text = (ROOT / "gcp" / "tpu.sh").read_text()
    assert not rest or re.search(rf"\b{rest[0]}\b", text)
  else:
    assert name in FOREIGN


@pytest.fixture
def given(tmp_path, monkeypatch):
  """What a run is given, which is not begun: its config and its stages."""
  given = []
  (tmp_path / "configs").symlink_to(ROOT / "configs")
  (mine,) = documented("laptop.md", "Say it once")  # a file of the reader's
  (tmp_path / "mine.py").write_text(mine)
  monkeypatch.chdir(tmp_path)
  shape = mp.presets["qwen-104m"]  # of a teacher that is not here
  monkeypatch.setattr(hub, "shape_of", lambda *a: shape)
  monkeypatch.setattr(
    pipeline, "run", lambda c, f, s, **k: given.extend([c, s])
  )
  return given


def test_commands_are_those_that_there_are(given):
  """Targets, modules, stages, fields, values."""
  seen = 0
  for page in PAGES:
    if page.name == "LOG.md":  # of its time
      continue
    for words in documented_commands(page):
      try:
        check(words, given)
      except (Exception, SystemExit) as e:
        raise AssertionError(f"{page}: {shlex.join(words)}") from e
      seen += words[0] not in FOREIGN
  assert seen > 60


def test_the_page_of_commands_is_complete():
  text = (ROOT / "docs" / "commands.md").read_text()
  rows = re.findall(r"^\| `(\w+)` \|", text, re.M)
  named = config_lib.STAGES + config_lib.ON_REQUEST + config_lib.LOOKS
  assert tuple(rows) == named
  configs = {path.stem for path in (ROOT / "configs").glob("*.py")}
  (listed,) = re.findall(r"is installed: (.*?);", text, re.S)
  assert set(re.findall(r"`(\w+)`", listed)) == configs


@pytest.mark.parametrize(
  "command",
  [
    "make nothing",
    "python -m benchmarks.scoring --nothing=1",
    "python -m benchmarks.nothing",
    "python -m miniplm_jax.main --config=configs/demo.py --stages=nothing",
    "miniplm nothing --config=demo",
    "miniplm run --config=demo --config.train.nothing=1",
    "miniplm run --config=demo --config.select.ratio=2",
    "--config.select.definition=nothing(",
    "pytest tests/test_nothing.py",
    "nothing",
  ],
)
def test_other_commands_are_refused(command, given):
  (words,) = commands(command)
  with pytest.raises((AssertionError, UserError)):
    check(words, given)
