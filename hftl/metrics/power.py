"""How small a difference can a test set show? Known before anything is trained."""

import math

from scipy import optimize, special

from hftl.errors import UserError

EXPECTED_DISAGREEMENT = 0.1  # share of test rows that two good models answer differently, before anything is known


def minimum_detectable_difference(
    num_examples: int, disagreement: float, *, alpha: float = 0.05, power: float = 0.8
) -> float | None:
    """Smallest true difference in accuracy of two trained models that a test set finds with `power`; None if none.

    Solves N d^2 = (z_(alpha/2) sqrt(q) + z_power sqrt(q - d^2))^2, the normal approximation of McNemar's test (Connor
    1987, Biometrics 43). Seeds add to it: this is what no number of seeds improves.

    Args:
        num_examples: N test rows.
        disagreement: q, the fraction of rows on which exactly one of the two is right, in (0, 1].
    """
    if num_examples < 1 or not 0 < disagreement <= 1:
        raise UserError(f"Found {num_examples} rows and disagreement {disagreement}; expected rows >= 1, 0 < q <= 1.")
    z_alpha, z_power = float(special.ndtri(1 - alpha / 2)), float(special.ndtri(power))

    def shortfall(difference: float) -> float:
        spread = math.sqrt(max(disagreement - difference**2, 0.0))
        return z_alpha * math.sqrt(disagreement) + z_power * spread - math.sqrt(num_examples) * difference

    if shortfall(disagreement) > 0:  # the difference cannot exceed the disagreement
        return None
    return float(optimize.brentq(shortfall, 0.0, disagreement))
