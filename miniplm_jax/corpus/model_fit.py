"""Whether a model reads a corpus's ids as the text that they stand for."""

from etils import epath

from miniplm_jax.core.errors import UserError
from miniplm_jax.core.log import log
from miniplm_jax.corpus import tokenizer

_STAGE = "score"  # for the log


def check_tokenizer(folder: epath.Path, corpus):
  """Refuses a model whose tokenizer gives these ids to other text.

  Args:
    folder: the model's Hugging Face directory; without a tokenizer in it the
      model is taken to have the corpus's, and a line says so.
    corpus: a `store.Corpus`.

  Raises:
    UserError: the tokenizers differ in tokens that rows may have.
  """
  if not (folder / "tokenizer.json").exists():
    log(_STAGE, f"no tokenizer.json in {folder}: taken to be the corpus's")
    return
  ours = corpus.tokenizer()
  theirs = tokenizer.load(folder, ours.eos_token)
  theirs.warn_of_bos(_STAGE, ours.bos_token)
  # They may differ in tokens that no row has.
  if ours.model(corpus.ids) != theirs.model(corpus.ids):
    raise UserError(
      "the model has another tokenizer than the corpus",
      f"{folder / 'tokenizer.json'} and {corpus.directory / 'tokenizer'}",
      "tokenize the corpus with the model's tokenizer",
    )
