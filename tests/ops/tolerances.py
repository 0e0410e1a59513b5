"""How far an implementation may be from its oracle."""

# Largest absolute difference where sums are taken in another order. Inputs of lower precision are exact in float32, in which
# every implementation computes. Integers and moved rows must be equal.
TOLERANCE = 1e-5
