"""Given models: named by path or hub id, read when they are needed."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

from etils import epath, epy

from miniplm_jax.api.students import Student
from miniplm_jax.config import GenerateConfig, RunConfig
from miniplm_jax.evaluation import generate as generate_lib
from miniplm_jax.models.architecture import Architecture
from miniplm_jax.models.ref import ROLES, ModelRef

with epy.lazy_imports():  # JAX, NumPy: planning needs neither
  from miniplm_jax.evaluation import texts as texts_lib
  from miniplm_jax.models import sharding


@dataclasses.dataclass(frozen=True)
class Model:
  """A Hugging Face directory or hub id, read when it is needed."""

  path: str
  revision: str = "main"  # branch, tag or commit of a hub id
  dtype: str = "bfloat16"  # of weights and computation

  @property
  def shape(self) -> Architecture:
    """Its shape; no weight is fetched for it."""
    return ModelRef("", self.path, self.revision).shape()

  def loaded(self, run: RunConfig = RunConfig()) -> "texts_lib.TextModel":
    """The decoder with its tokenizer; kept, for this process's devices."""
    return _loaded(self, run.data, run.fsdp, run.tensor)


@functools.lru_cache(maxsize=1)
def _loaded(model: Model, *mesh: int) -> "texts_lib.TextModel":
  folder = ModelRef("", model.path, model.revision).folder()
  return texts_lib.TextModel.load(
    folder, sharding.make_mesh(*mesh), model.dtype
  )


def load_model(
  path: epath.PathLike, *, revision: str = "main", dtype: str = "bfloat16"
) -> Model:
  """Names a model of a directory or of the hub; safetensors, no remote code.

  Raises:
    UserError: there is none, or it is of no known family.
  """
  model = Model(str(path), revision, dtype)
  _ = model.shape
  return model


def ref_of(name: str, model, root: epath.Path, tables=None) -> ModelRef:
  """What steps read a model by."""
  role = name if name in ROLES else ""
  table = (tables or root / "scores") / name
  if isinstance(model, Student):
    return ModelRef(
      name, role=role, trained=model.path, model=model.shape, table=table
    )
  model = model if isinstance(model, Model) else load_model(model)
  return ModelRef(name, model.path, model.revision, role, table=table)


def generate(
  model: Student | Model | str,
  prompts: Sequence[str],
  *,
  run: RunConfig = RunConfig(),
  **options: Any,
) -> list[list["generate_lib.Continuation"]]:
  """Draws continuations of each prompt.

  Args:
    model: a given model, or a student with a Hugging Face directory.
    **options: fields of `GenerateConfig`: samples, max_new_tokens, ….
  """
  own = {"dtype": model.dtype} if isinstance(model, Model) else {}
  section = GenerateConfig(**own | options)
  loaded = text_model(model, section.dtype, run)
  return generate_lib.continue_prompts(loaded, prompts, section)


def nll(
  model: Student | Model | str,
  texts: Sequence[str],
  *,
  dtype: str = "",
  run: RunConfig = RunConfig(),
  **how: int,
) -> list["texts_lib.TextScore"]:
  """Σ −log p of whole texts, in nats, with their tokens and UTF-8 bytes.

  Args:
    model: a given model, or a student with a Hugging Face directory.
    texts: none empty.
    dtype: of weights and computation; "" is a given model's own, or float32.
    **how: batch_tokens and max_length of `evaluation.texts.nll`.
  """
  return texts_lib.nll(text_model(model, dtype, run), texts, **how)


def text_model(model, dtype: str, run: RunConfig) -> "texts_lib.TextModel":
  """A model of any kind, read, with its tokenizer."""
  if not isinstance(model, Model):
    path = model.hf if isinstance(model, Student) else model
    model = load_model(path, dtype="float32")
  return dataclasses.replace(model, dtype=dtype or model.dtype).loaded(run)
