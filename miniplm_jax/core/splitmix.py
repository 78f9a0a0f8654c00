"""SplitMix64 (Steele, Lea, Flood 2014): numbers that belong to numbers."""

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # what its counter goes up by
_STEPS = (
  (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)),
  (np.uint64(27), np.uint64(0x94D049BB133111EB)),
)


def mix(bits):
  """uint64 → uint64, one to one; every input bit moves every output bit."""
  with np.errstate(over="ignore"):  # modulo 2⁶⁴ is meant
    for shift, factor in _STEPS:
      bits = (bits ^ (bits >> shift)) * factor
    return bits ^ (bits >> np.uint64(31))
