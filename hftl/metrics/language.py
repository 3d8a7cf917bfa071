"""How well does a language model predict the text that was written? All from sums over the tokens of each row.

Logarithms are natural. Tokens of another tokenizer are other questions, so that only `bits_per_byte` compares models
with different ones. Must not know: logits, models, how a text became tokens.
"""

import math

import numpy as np

from hftl.metrics.base import LANGUAGE, POSITIVE, TOKEN_SUMS, Metric
from hftl.metrics.spread import linearize, spread_perplexity


def _ratio(total: np.ndarray, count: np.ndarray) -> float:
    return float(np.sum(total, dtype=np.float64) / np.sum(count, dtype=np.float64))


class TokenLoss(Metric):
    """Mean negative log-likelihood of a token, in nats."""

    inputs = {LANGUAGE: TOKEN_SUMS}
    greater_is_better = False
    by_row = staticmethod(lambda table: linearize(table["negative_log_likelihood"], table["num_tokens"]))
    bounds = POSITIVE

    def compute(self, negative_log_likelihood, num_tokens, num_correct, num_bytes):
        return {"token_loss": _ratio(negative_log_likelihood, num_tokens)}


class Perplexity(Metric):
    """exp of the mean negative log-likelihood of a token; over all tokens of the split, not a mean over rows."""

    inputs = {LANGUAGE: TOKEN_SUMS}
    greater_is_better = False
    by_row = staticmethod(lambda table: spread_perplexity(table["negative_log_likelihood"], table["num_tokens"]))
    bounds = (1.0, math.inf)

    def compute(self, negative_log_likelihood, num_tokens, num_correct, num_bytes):
        with np.errstate(over="ignore"):
            return {"perplexity": float(np.exp(_ratio(negative_log_likelihood, num_tokens)))}


class BitsPerByte(Metric):
    """Negative log-likelihood in bits by byte of the text (UTF-8), end token included; the same for any tokenizer."""

    inputs = {LANGUAGE: TOKEN_SUMS}
    greater_is_better = False
    by_row = staticmethod(lambda table: linearize(table["negative_log_likelihood"], np.log(2) * table["num_bytes"]))
    bounds = POSITIVE

    def compute(self, negative_log_likelihood, num_tokens, num_correct, num_bytes):
        return {"bits_per_byte": _ratio(negative_log_likelihood, num_bytes) / float(np.log(2))}


class TokenAccuracy(Metric):
    """Fraction of tokens that are the most probable one, given the true text before them, in [0, 1]."""

    inputs = {LANGUAGE: TOKEN_SUMS}
    by_row = staticmethod(lambda table: linearize(table["num_correct"], table["num_tokens"]))

    def compute(self, negative_log_likelihood, num_tokens, num_correct, num_bytes):
        return {"token_accuracy": _ratio(num_correct, num_tokens)}
