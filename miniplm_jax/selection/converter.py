"""seqio's last step for a language model, with MiniPLM's loss mask.

seqio's own converters take id 0 for padding; in Qwen's vocabulary it is "!".
Imports TensorFlow.
"""

from collections.abc import Mapping

from miniplm_jax.selection.with_seqio import seqio, tf


class FeatureConverter(seqio.PassThroughFeatureConverter):
  """Ids of a row → inputs, targets and weights of one length.

  A weight is 1 where the input is an id of the row other than eos: decided by
  position and eos alone, so that id 0 is an id like any other. The name says
  what seqio's users expect: decoder_input_tokens, decoder_target_tokens,
  decoder_loss_weights; of other features those of one number or text pass.
  """

  def __init__(self, eos_id: int):
    """Takes the corpus's end-of-document id; it also pads."""
    super().__init__()
    self._eos_id = eos_id

  def __call__(
    self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
  ) -> tf.data.Dataset:
    """See base class.

    The length of `targets`, int32 [n], is max_length + 1, the ids of a full
    row, for inputs and targets of max_length; longer rows are cut.
    """
    length = task_feature_lengths["targets"]

    def one(example):
      ids = example["targets"][:length]
      pad = [[0, length - tf.shape(ids)[0]]]
      padded = tf.pad(ids, pad, constant_values=self._eos_id)
      padded = tf.ensure_shape(padded, [length])
      # What pads is eos, and the last id of a row is nobody's input.
      weights = tf.sequence_mask(tf.shape(ids)[0] - 1, length - 1)
      weights &= padded[:-1] != self._eos_id
      # Others have no common length and could not stand in a batch.
      rest = {k: v for k, v in example.items() if v.shape.rank == 0}
      return rest | {
        "decoder_input_tokens": padded[:-1],
        "decoder_target_tokens": padded[1:],
        "decoder_loss_weights": tf.cast(weights, tf.int32),
      }

    return ds.map(one, num_parallel_calls=tf.data.AUTOTUNE)

  def get_model_feature_lengths(
    self, task_feature_lengths: Mapping[str, int]
  ) -> Mapping[str, int]:
    """Lengths of what comes out."""
    names = ("input_tokens", "target_tokens", "loss_weights")
    length = task_feature_lengths["targets"] - 1
    return {f"decoder_{name}": length for name in names}
