"""What is on disk is what was written, or is refused by name."""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_config
from etils import epath
from helpers import STEPS, edited, steps_of, typed
from tokenizers import Tokenizer
from tokenizers.models import BPE

from miniplm_jax import pipeline
from miniplm_jax.core import files, manifest
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.workdir import Workdir
from miniplm_jax.corpus import store, tokenize_step, tokenizer, trained_rows
from miniplm_jax.models import architecture, config_json, hub, huggingface
from miniplm_jax.models.ref import ModelRef
from miniplm_jax.scoring import importing, table, units
from miniplm_jax.training import metrics

WORKDIR = Workdir(epath.Path("unused"))


def execute(folder, *stages, **settings):
  """Stages of the finished run, in this process."""
  config = tiny_config.get_config()
  config.train.steps = STEPS
  config.baselines = ("pretrain",)
  config.workdir = str(folder / "run")
  config.corpus.source = str(folder / "text.jsonl")
  config.update_from_flattened_dict(settings)
  pipeline.run(config, "test", stages, force=False, dry_run=False)


def flip(path: pathlib.Path, at: float = 0.6):
  """Another byte in the same place of a file; its size stays."""
  content = bytearray(path.read_bytes())
  content[int(len(content) * at)] ^= 1
  path.write_bytes(content)


@pytest.mark.parametrize(
  ("damaged", "gone", "stage"),
  [
    ("teacher/hf/model.safetensors", "scores", "score"),
    ("reference/hf/tokenizer.json", "scores", "score"),
    ("corpus/index-00000-of-00001.parquet", "selection", "select"),
    ("corpus/tokenizer/tokenizer.json", "students/miniplm/hf", "export"),
    ("students/miniplm/hf/model.safetensors", "", "generate"),
  ],
)
def test_a_changed_byte_is_refused_by_name(copy, damaged, gone, stage):
  flip(copy / "run" / damaged)
  if gone:
    shutil.rmtree(copy / "run" / gone)
  with pytest.raises(UserError, match=pathlib.Path(damaged).name):
    execute(copy, stage, **{"generate.prompts": ("a",)})


def edit(path: pathlib.Path, **values):
  """Sets values in a JSON object."""
  path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_model_folder_is_known_by_its_whole_content(finished, tmp_path):
  shutil.copy(finished / "run/teacher/hf/config.json", tmp_path)
  weights = tmp_path / "model.safetensors"
  weights.write_bytes(bytes(10**6))
  given = hub.Given(str(tmp_path), "")
  before, formerly = given(), given.former()[1]
  flip(weights, 0.5)
  assert given() != before and given.former()[1] == formerly
  flip(weights, 0.5)
  assert given() == before
  (tmp_path / "README.md").write_text("no part of the model")
  (tmp_path / "optimizer.safetensors").write_bytes(b"is not read")
  edit(tmp_path / "config.json", transformers_version="5.0", use_cache=False)
  assert given() == before
  edit(tmp_path / "config.json", rms_norm_eps=1e-3)
  assert given() != before


def test_what_a_model_chose_stands_by_whatever_path_it_is_given(copy, capsys):
  """The table's parts are the same: so is what was made of it."""
  shutil.copytree(copy / "run/teacher/hf", copy / "given")
  for path in ("run/scores/teacher", "run/selection"):
    shutil.rmtree(copy / path)
  stages = "score", "select"
  execute(copy, *stages, **{"teacher.path": str(copy / "given")})
  parts = (copy / "run/scores/teacher").glob("*.parquet")
  before = {path: path.stat().st_mtime_ns for path in parts}
  edit(copy / "given/config.json", use_cache=False)
  (copy / "given").rename(copy / "moved")
  capsys.readouterr()
  # And by no path at all: it was trained here.
  for given in ({"teacher.path": str(copy / "moved")}, {}):
    execute(copy, *stages, **given)
    told = capsys.readouterr().out
    assert told.count("skipped, nothing has changed") >= 2, told
  assert before == {path: path.stat().st_mtime_ns for path in before}


OTHER = {"select.name": "other", "baselines": ()}


def test_an_evaluation_is_of_the_weights_that_scored(copy):
  shutil.copytree(copy / "run/teacher/hf", copy / "given")
  given = {"teacher.path": str(copy / "given")}
  shutil.rmtree(copy / "run/scores/teacher")
  execute(copy, "score", **given)
  flip(copy / "given/model.safetensors")
  with pytest.raises(UserError, match=r"stage score .*inputs\.weights is"):
    execute(copy, "evaluate", **given)
  # One that is gone may have been removed since.
  shutil.rmtree(copy / "given")
  execute(copy, "select", **OTHER | given)


def test_a_table_is_of_the_model_that_the_config_names(copy):
  given = {"teacher.path": str(copy / "run/reference/hf"), "baselines": ()}
  for stage, names in {
    "select": OTHER,
    "proxy": {"method": "proxy"},
    "evaluate": {},
    "report": {},
  }.items():
    with pytest.raises(UserError, match=r"stage score .*inputs\.weights is"):
      execute(copy, stage, **given | names)
  with pytest.raises(UserError, match=r"settings\.int8 is false there"):
    execute(copy, "select", **OTHER | {"score.int8_teacher": True})
  assert not (copy / "run/selection/other").exists()
  with edited(copy / "run/reference/manifest.json") as body:
    body["weights"] = "trained again"
  # Also behind a selection that it chose.
  for stage, names in (("select", OTHER), ("train", {"student.name": "new"})):
    with pytest.raises(UserError, match=r"stage score .*inputs\.weights is"):
      execute(copy, stage, **{"baselines": ()} | names)
  with pytest.raises(UserError, match=r"no model directory here, \./gone"):
    execute(copy, "select", **OTHER | {"teacher.path": "./gone"})


def test_what_a_proxy_predicts_is_of_the_scores_that_are_there(copy):
  workdir = Workdir(epath.Path(copy / "run"))
  tables = {
    role: manifest.read(workdir.scores(role) / "manifest.json")
    for role in ("teacher", "reference")
  }
  made = tables["teacher"]
  dataclasses.replace(
    made,
    path=workdir.scores("proxy") / "manifest.json",
    settings={k: v for k, v in made.settings.items() if k != "int8"},
    inputs={
      "corpus": made.inputs["corpus"],
      "model": "is gone",
      "teacher": "another",
      "reference": tables["reference"].fingerprint,
    },
  ).write()
  with pytest.raises(UserError, match=r"inputs\.teacher is .another. there"):
    execute(copy, "select", **OTHER | {"method": "proxy"})


def test_a_hub_id_whose_branch_moved_is_not_the_model_that_scored(
  copy, monkeypatch
):
  there = copy / "run/teacher/hf"
  monkeypatch.setattr(hub, "resolve", lambda *_, **__: epath.Path(there))
  given = {"teacher.path": "org/model", "baselines": ()}
  shutil.rmtree(copy / "run/scores/teacher")
  execute(copy, "score", **given)
  there = copy / "run/reference/hf"
  for stage, method in {
    "evaluate": "miniplm",
    "train": "vanilla_kd",
    "seqkd": "seqkd",
    "logits": "sparse_kd",
  }.items():
    with pytest.raises(UserError, match="teacher was scored by weights"):
      execute(copy, stage, method=method, **given)


@pytest.mark.parametrize("scored", ["float32", "bfloat16"])
def test_a_model_is_known_by_its_table_in_whatever_dtype(copy, mesh, scored):
  """It is loaded in the wider of the two, and used in the one that is asked."""
  workdir = Workdir(epath.Path(copy / "run"))
  corpus = store.Corpus(manifest.read(workdir.corpus / "manifest.json"))
  config = tiny_config.get_config()
  config.teacher.path = str(copy / "run/teacher/hf")
  teacher, other = (
    dataclasses.replace(
      ModelRef.of_role(role, section, workdir),
      table=workdir.scores("teacher"),
    )
    for role, section in typed(config).roles.items()
  )

  def loaded(dtype):
    return teacher.load(corpus, mesh, dtype)

  with edited(copy / "run/scores/teacher/manifest.json") as body:
    body["settings"]["dtype"] = scored
    body["weights"] = huggingface.weights_fingerprint(loaded(scored))
  for dtype in ("float32", "bfloat16"):
    found = teacher.load_as_scored(corpus, mesh, dtype)
    prints = map(huggingface.weights_fingerprint, (found, loaded(dtype)))
    assert len({*prints}) == 1
    with pytest.raises(UserError, match="reference was scored by weights"):
      other.load_as_scored(corpus, mesh, dtype)


def test_a_student_is_not_taken_for_another_method_s(copy):
  names = {"select.name": "pretrain", "student.name": "pretrain"}
  names |= {"baselines": ()}
  for stage in ("evaluate", "export"):
    with pytest.raises(UserError, match=r"settings\.kd is null there"):
      execute(copy, stage, method="vanilla_kd", **names)
    with pytest.raises(UserError, match=r"definition is .*random.* there"):
      execute(copy, stage, method="miniplm", **names)
  names["student.name"] = "new"
  with pytest.raises(UserError, match=r"definition is .*random.* there"):
    execute(copy, "train", method="miniplm", **names)


FIELDS = {"num_key_value_heads": 2, "rms_norm_eps": 0.5, "rope_theta": 10.0}


@pytest.mark.parametrize(("field", "value"), FIELDS.items())
@pytest.mark.parametrize("stage", ["evaluate", "export"])
def test_a_student_is_read_in_the_shape_that_it_was_trained_in(
  finished, stage, field, value
):
  """No weight tells these fields."""
  with pytest.raises(
    UserError, match=rf"model\.{field} is .* and {value} here"
  ):
    execute(finished, stage, **{f"student.model.{field}": value})


@pytest.mark.parametrize("stage", ["reference", "score", "train", "report"])
def test_a_corpus_is_what_its_manifest_says(finished, stage):
  words = "max_length is 32 there and 4096 here"
  with pytest.raises(UserError, match=words):
    execute(finished, stage, **{"corpus.max_length": 4096})


@pytest.mark.parametrize(
  ("stage", "field", "value"),
  [
    ("train", "select.ratio", 0.25),
    ("select", "teacher.train.steps", 9),
    ("evaluate", "train.learning_rate", 0.5),
    ("train", "corpus.domain_field", "x"),
  ],
)
def test_what_lies_under_a_name_is_what_the_config_says(
  finished, stage, field, value
):
  """Also where the stage that made it is not run."""
  given = {field: value}
  if stage == "train":
    given["student.name"] = "other-{method}"
  words = rf"was run otherwise: settings\.(train\.)?{field.split('.')[-1]} is"
  with pytest.raises(UserError, match=words):
    execute(finished, stage, **given)


def test_a_stage_that_is_left_out_is_named_before_others_run(finished):
  given = {"student.name": "new-{method}", "baselines": ("seqkd",)}
  stages = "select", "train", "evaluate"
  with pytest.raises(UserError, match=r"stage seqkd makes.*add seqkd to") as e:
    execute(finished, *stages, **given)
  assert "stage train reads" in str(e.value)
  assert not (finished / "run/students/new-miniplm").exists()


def test_a_corpus_of_another_source_is_not_read(copy):
  other = copy / "other.jsonl"
  with pytest.raises(UserError, match="no file of documents is there"):
    execute(copy, "select", **{"corpus.source": str(other)})
  text = (copy / "text.jsonl").read_text()
  other.write_text(text.replace("a", "b"))
  with pytest.raises(UserError, match=r"inputs\.source is"):
    execute(copy, "select", **{"corpus.source": str(other)})
  # The same in another place.
  other.write_text(text)
  (copy / "moved").mkdir()
  other.rename(copy / "moved/text.jsonl")
  source = str(copy / "moved/text.jsonl")
  execute(copy, "select", **{"corpus.source": source})


@pytest.mark.parametrize("name", ["mamba-130m", "llama3.1-212m"])
def test_a_shape_is_read_back_from_a_manifest(name):
  arch = architecture.SHAPES[name]
  fields = architecture.settings_of(arch)
  assert fields == dataclasses.asdict(arch)  # as in every manifest so far
  assert architecture.of(fields) == arch


def test_a_family_with_the_fields_of_another_is_no_other(monkeypatch):
  class Gelu(architecture.Transformer):
    family = "gelu"

  monkeypatch.setitem(architecture.FAMILIES, "gelu", Gelu)
  arch = Gelu(**dataclasses.asdict(architecture.SHAPES["qwen-45m"]))
  fields = architecture.settings_of(arch)
  assert architecture.of(fields) == arch
  monkeypatch.delitem(architecture.FAMILIES, "gelu")
  with pytest.raises(UserError, match="no families have the fields family"):
    architecture.of(fields)
  with pytest.raises(UserError, match="2 families have the fields vocab_size"):
    architecture.of({"vocab_size": 512})


@pytest.mark.parametrize(
  "name", ["../model.safetensors", "/model.safetensors", "a/b.safetensors", 3]
)
def test_weights_lie_in_the_folder_of_their_index(tmp_path, name):
  index = tmp_path / "a" / "model.safetensors.index.json"
  index.parent.mkdir()
  (tmp_path / "model.safetensors").write_bytes(b"")
  for named in ({"weight_map": {"w": name}}, {"weight_map": [name]}, {}):
    index.write_text(json.dumps(named))
    with pytest.raises(UserError, match="weight_map names"):
      hub.weight_files(epath.Path(index.parent))


@pytest.mark.parametrize(
  "change",
  [
    {"layer_types": 5},
    {"rope_scaling": {"rope_type": ["llama3"]}},
    {"num_attention_heads": 10**400},
    {"num_attention_heads": 0},
    {"hidden_act": {}},
  ],
)
def test_a_config_of_other_kinds_of_values_is_one_line(change):
  arch = architecture.SHAPES["qwen-45m"]
  good = config_json.write(arch, 0, "float32")
  assert config_json.read(good, "here") == arch
  with pytest.raises(UserError, match="here"):
    config_json.read(good | change, "here")


def test_what_ends_a_text_is_ids(tmp_path):
  for value in ("</s>", {"a": 1}, [None], True, -1):
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": value}))
    with pytest.raises(UserError, match="eos_token_id is"):
      hub.eos_ids(epath.Path(tmp_path))


def test_json_that_is_nested_without_end_is_one_line(tmp_path):
  path = epath.Path(tmp_path / "config.json")
  path.write_text("[" * 100_000)
  for read in (hub.read_json, manifest.read):
    with pytest.raises(UserError, match=r"config\.json"):
      read(path)


def test_damaged_parts_of_a_table_are_one_line(tmp_path):
  unit = units.Unit(0, 3, "shard", np.arange(3))
  path = epath.Path(tmp_path / unit.name)
  whole = table.encode(unit, np.ones(3, np.float32), np.ones(3, np.int32), {})
  path.write_bytes(whole)
  assert table.read_part(path).columns["nll_sum"].tolist() == [1, 1, 1]
  rng = np.random.default_rng(0)
  refused = 0
  for _ in range(300):
    content = bytearray(whole)
    content[rng.integers(len(whole))] = rng.integers(256)
    path.write_bytes(content)
    try:
      table.read_part(path)
    except UserError as e:
      refused += 1
      assert unit.name in str(e)
  assert refused > 100


def test_metrics_of_a_finished_run_are_those_that_it_wrote(copy):
  folder = epath.Path(copy / "run/students/miniplm/metrics")
  assert len(metrics.read(folder)) > 3
  path = folder / "metrics.jsonl"
  text = path.read_text()
  path.write_text(text.replace('"step": 1,', '"step": 3,', 1))
  assert path.read_text() != text
  with pytest.raises(UserError, match="not those that the run wrote"):
    metrics.read(folder)


def test_what_is_no_vector_of_scores_is_one_line(tmp_path):
  row_ids = np.arange(3)
  path = epath.Path(tmp_path / "scores.npy")
  np.save(path, np.ones(3))
  assert importing._read(path, row_ids)[0].tolist() == [1, 1, 1]

  def wrong(words, write, name=""):
    name = name or words
    with (tmp_path / name).open("wb") as f:
      write(f)
    with pytest.raises(UserError, match=words):
      importing._read(epath.Path(tmp_path / name), row_ids)

  wrong("scores.npy", lambda f: f.write(b""))
  for name in ("scores.npy", "scores.npz"):
    wrong(name, lambda f: np.savez(f, nll=np.ones(3)))
  for values in (np.float32(1), ["a"] * 3, np.ones((3, 1)), np.ones(2)):
    wrong("scores.npy", lambda f, values=values: np.save(f, values))
  for bad in (np.nan, np.inf, -1, 1e300):
    wrong(
      r"row 1 has .* which is no −log p, .*scores.npy \(1 such",
      lambda f, bad=bad: np.save(f, [1, bad, 1]),
      "scores.npy",
    )
  for columns in (
    {"row_id": [0, 1, None], "nll_sum": [1.0] * 3},
    {"row_id": ["0", "1", "2"], "nll_sum": [1.0] * 3},
    {"row_id": [0, 1, 2], "nll_sum": [1.0] * 3, "n_tokens": ["a"] * 3},
    {"row_id": [0, 1, 2], "nll_sum": [[1.0]] * 3},
    {"row_id": [0, 1, 2], "nll_sum": [1.0, None, 1.0]},
    {"nll_sum": [1.0] * 3},
  ):
    content = pa.table(columns)
    wrong("scores.parquet", lambda f, t=content: pq.write_table(t, f))


def test_rows_are_those_of_their_index(tmp_path):
  """Also if a shard of another corpus has the same size."""

  def write(folder, seed):
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 500, (8, 9)).astype(np.int32)
    rows = [
      store.StoredRow(x, "d", "train", 0, (0,), 0, 9, store.hash_of(x, 1))
      for x in ids
    ]
    names = store.shard_names(0, 1)
    store.write_shard(epath.Path(folder), names, rows, {"rows": 8})
    return ids, [folder / name for name in names]

  ids, (records, index) = write(tmp_path / "mine", 0)
  foreign = write(tmp_path / "other", 1)[1][0].read_bytes()
  counts = {"rows": 8, "parts": 1, "rows_by_part": [8]}

  def corpus():
    described = {p.name: files.describe(p) for p in (records, index)}
    return store.Corpus(
      manifest.Manifest(
        epath.Path(tmp_path / "mine" / "manifest.json"),
        stage="tokenize",
        settings={},
        inputs={},
        counts=counts,
        files=described,
      )
    )

  assert corpus().read([3])[0].ids.tolist() == ids[3].tolist()
  records.write_bytes(foreign)
  with pytest.raises(UserError, match=r"row 3 is another.*array_record"):
    corpus().read([3])
  records.write_bytes(foreign[:70] + b"damage" + foreign[76:])
  with pytest.raises(UserError, match=r"array_record"):
    corpus().read(range(8))
  index.write_bytes(b"no Parquet")
  with pytest.raises(UserError, match=index.name):
    store.has(index.parent, (records.name, index.name))


def test_a_tokenizer_that_panics_is_one_line(tmp_path):
  body = json.loads(Tokenizer(BPE()).to_str())
  for decoder in ({"type": "Strip", "content": "ab", "start": 0, "stop": 0}, 3):
    text = json.dumps(body | {"decoder": decoder})
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(UserError, match="the tokenizer cannot be read"):
      tokenizer.load_engine(epath.Path(tmp_path))


def test_rows_that_a_model_was_trained_on_are_not_scored(copy):
  """Also if it is given by path, and other rows were held back."""
  shutil.copytree(copy / "run/reference/hf", copy / "reference")
  trained = manifest.require(copy / "run/corpus/manifest.json")
  for seed in (10, 11):
    config = {"corpus.seed": seed}
    config["corpus.tokenizer"] = str(copy / "run/corpus/tokenizer")
    config["workdir"] = str(copy / f"seed{seed}")
    execute(copy, "tokenize", **config)
    made = manifest.require(
      epath.Path(config["workdir"]) / "corpus/manifest.json"
    )
    corpora = [store.Corpus(m) for m in (trained, made)]
    reference = corpora[0].read(corpora[0].rows_of("reference"))
    known = {row.ids.tobytes() for row in reference}
    rows = corpora[1].rows_of("train")
    both = [
      i
      for i, row in zip(rows, corpora[1].read(rows))
      if row.ids.tobytes() in known
    ]
    check = epath.Path(copy / "reference"), corpora[1], rows, "reference"
    if seed == 10:
      assert not both
      trained_rows.refuse(*check)
      continue
    assert len(both) > 10
    words = f"trained on {len(both)} of .*, row {both[0]} the first"
    with pytest.raises(UserError, match=words):
      trained_rows.refuse(*check)
    config |= {"teacher.path": str(copy / "run/teacher/hf")}
    config |= {"reference.path": str(copy / "reference")}
    with pytest.raises(UserError, match="teacher was trained on"):
      execute(copy, "score", **config)


def test_rows_that_a_student_was_trained_on_are_not_scored(finished):
  """What is exported says so as well."""
  run = epath.Path(finished / "run")
  corpus = store.Corpus(manifest.require(run / "corpus/manifest.json"))
  kept = np.load(run / "selection/pretrain/rows.npy")
  student = run / "students/pretrain/hf"
  rows, hashes = corpus.rows_of("train"), corpus.index["hash"].to_numpy()
  seen = np.isin(hashes[rows], hashes[kept])  # some rows are equal
  words = f"trained on {seen.sum()} of .*, row {rows[seen][0]} the first"
  with pytest.raises(UserError, match=words):
    trained_rows.refuse(student, corpus, rows, "it")
  trained_rows.refuse(student, corpus, corpus.rows_of("heldout"), "it")


def test_held_out_rows_that_a_model_was_trained_on_are_not_measured(copy):
  """Other shares hold back what the reference has seen; D is the same."""
  model = str(copy / "run/reference/hf")
  settings = {
    "workdir": str(copy / "other"),
    "corpus.source": str(copy / "text.jsonl"),
    "corpus.tokenizer": str(copy / "run/corpus/tokenizer"),
    "corpus.reference_share": 0.1,
    "corpus.heldout_share": 0.2,
    "teacher.path": str(copy / "run/teacher/hf"),
    "reference.path": model,
  }
  execute(copy, "tokenize", **settings)
  made = [
    store.Corpus(manifest.require(epath.Path(copy / name)))
    for name in ("run/corpus/manifest.json", "other/corpus/manifest.json")
  ]
  seen, rows = (
    corpus.index["hash"].to_numpy()[corpus.rows_of(split)]
    for corpus, split in zip(made, ("reference", "heldout"))
  )
  words = (
    rf"trained on {np.isin(rows, seen).sum()} of {len(rows)} held-out rows"
  )
  begin = {"method": "pretrain", "baselines": (), "student.init": model}
  with pytest.raises(UserError, match=f"student.init was {words}"):
    execute(copy, "select", "train", **settings, **begin)
  config = tiny_config.get_config()
  config.update_from_flattened_dict(settings)
  workdir = Workdir(epath.Path(config.workdir))
  *_, reference = pipeline.Stages(typed(config), workdir).evaluate()
  with pytest.raises(UserError, match=f"reference was {words}"):
    reference.run({"corpus": made[1].manifest})


def test_what_decides_nothing_may_change(finished):
  """A seed where nothing is drawn, and what only another tokenizer reads."""
  config = tiny_config.get_config()
  config.corpus.tokenizer_revision = "other"
  config.select.seed += 1
  idle = {"split", "tokenizer_revision"}  # files have no splits
  assert set(steps_of(tokenize_step.STAGE, config)[0].idle) == idle
  config.corpus.tokenizer = str(finished / "run/corpus/tokenizer")
  idle |= {"vocab_size"}
  assert set(steps_of(tokenize_step.STAGE, config)[0].idle) == idle
  config.corpus.tokenizer = "of/the-hub"
  idle -= {"tokenizer_revision"}
  assert set(steps_of(tokenize_step.STAGE, config)[0].idle) == idle
  execute(finished, "select", **{"select.seed": 12, "baselines": ()})
  with pytest.raises(UserError, match=r"seed is 10 there and 12 here"):
    execute(finished, "select", **{"select.seed": 12})  # of random rows


def test_a_begun_shard_goes_on_as_it_was_written(copy):
  corpus = copy / "run/corpus"
  (corpus / "manifest.json").rename(corpus / "manifest.partial.json")
  (index,) = corpus.glob("index-*")
  good = pq.read_table(index)
  hashes = good["hash"].to_pylist()
  place = good.schema.get_field_index("hash")
  other = good.set_column(place, "hash", pa.array(hashes[::-1], pa.uint64()))
  pq.write_table(other, index)
  with pytest.raises(UserError, match=rf"content is not that.*{index.name}"):
    execute(copy, "tokenize")
  index.write_bytes(index.read_bytes()[:-9] + b"x" * 9)
  with pytest.raises(UserError, match=rf"damaged.*{index.name}"):
    execute(copy, "tokenize")
  pq.write_table(good, index)
  execute(copy, "tokenize")


def begin_again(folder: pathlib.Path, **settings):
  """As if a kill had left a corpus, begun with other settings, unfinished."""
  with edited(folder / "manifest.json") as body:
    assert body["settings"].keys() >= settings.keys()
    body["settings"] |= settings
  (folder / "manifest.json").rename(folder / "manifest.partial.json")


@pytest.mark.parametrize(
  ("name", "value"),
  [
    ("max_length", 16),
    ("seed", 77),
    ("reference_share", 0.3),
    ("domain_field", ""),
  ],
)
def test_a_corpus_takes_no_shard_of_other_settings(copy, name, value):
  corpus = epath.Path(copy / "run/corpus")
  (index,) = corpus.glob("index-*")
  before = manifest.require(corpus / "manifest.json").settings[name]
  begin_again(corpus, **{name: value})
  words = f"{name.split('_')[0]}.* is {json.dumps(before)} there and "
  words += f"{json.dumps(value)} here.*{index.name}"
  with pytest.raises(UserError, match=words):
    execute(copy, "tokenize", **{f"corpus.{name}": value})
  # The way out that it names.
  index.unlink()
  execute(copy, "tokenize", **{f"corpus.{name}": value})
  execute(copy, "tokenize", **{f"corpus.{name}": value})
  by = {"settings": {name: "another"}}
  with pytest.raises(UserError, match=rf"of another run.*{index.name}"):
    store.merge(corpus, 1, by)


def test_a_shard_that_does_not_say_what_made_it_stands(copy):
  """Those of earlier versions."""
  corpus = copy / "run/corpus"
  begin_again(corpus)
  (index,) = corpus.glob("index-*")
  shard = pq.read_table(index)
  said = {k: json.loads(v) for k, v in shard.schema.metadata.items()}
  del said[b"details"]["made_by"], said[b"content"]
  said = {k: json.dumps(v) for k, v in said.items()}
  pq.write_table(shard.replace_schema_metadata(said), index)
  there = index.read_bytes()
  execute(copy, "tokenize")
  assert index.read_bytes() == there


def swap(folder: pathlib.Path):
  """Two ids of a tokenizer, as another of the same text may have them."""
  path = folder / "tokenizer/tokenizer.json"
  body = json.loads(path.read_text())
  vocab = body["model"]["vocab"]
  vocab["a"], vocab["e"] = vocab["e"], vocab["a"]
  path.write_text(json.dumps(body))


def test_a_corpus_goes_on_with_the_tokenizer_that_it_began_with(copy):
  corpus = copy / "run/corpus"
  shutil.copytree(corpus / "tokenizer", copy / "given")
  begin_again(corpus)
  swap(corpus)
  with pytest.raises(UserError, match=r"tokenizer is .* there.*index-00000"):
    execute(copy, "tokenize")
  config = {"corpus.tokenizer": str(copy / "given"), "corpus.heldout_share": 0}
  config["workdir"] = str(copy / "other")
  execute(copy, "tokenize", **config)
  corpus = copy / "other/corpus"
  begin_again(corpus)
  own = corpus / "tokenizer/tokenizer.json"
  there = own.read_bytes()
  swap(corpus)
  words = rf"no copy of config\.corpus\.tokenizer=.*{own}"
  with pytest.raises(UserError, match=words):
    execute(copy, "tokenize", **config)
  own.unlink()  # the way out that it names
  execute(copy, "tokenize", **config)
  assert own.read_bytes() == there


def test_converted_rows_are_those_of_the_tokenizer_and_the_settings(copy):
  folder = copy / "run/students/miniplm/corpus"
  config = {"student.tokenizer": str(copy / "given"), "baselines": ()}
  config["student.eos_token"] = tiny_config.get_config().corpus.eos_token
  shutil.copytree(copy / "run/corpus/tokenizer", copy / "given")
  execute(copy, "convert", **config)
  own = folder / "tokenizer/tokenizer.json"
  there = own.read_bytes()
  begin_again(folder, conversion="one_to_one")
  other = config | {"student.conversion": "one_to_one"}
  words = r'conversion is "repack" there and "one_to_one" here.*index-00000'
  with pytest.raises(UserError, match=words):
    execute(copy, "convert", **other)
  swap(folder)
  with pytest.raises(UserError, match=r"no copy of config\.student\.tokenizer"):
    execute(copy, "convert", **other)
  own.write_bytes(there)
  for path in folder.glob("index-*"):
    path.unlink()
  execute(copy, "convert", **other)


def test_generated_rows_are_those_of_the_settings(copy):
  config = {"method": "seqkd", "baselines": (), "seqkd.rows": 16}
  execute(copy, "seqkd", **config)
  folder = copy / "run/students/seqkd/generated"
  begin_again(folder, seed=11)
  with pytest.raises(UserError, match=r"seed is 10 there and 11 here.*index-0"):
    execute(copy, "seqkd", **config | {"seqkd.seed": 11})
