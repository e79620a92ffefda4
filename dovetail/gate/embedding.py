# SPDX-License-Identifier: Apache-2.0
"""How embeddings are judged: each vector against the reference's, and against people's scores of similarity."""

from __future__ import annotations

import numpy as np

from dovetail.errors import InvalidInputError
from dovetail.gate.intervals import bootstrap_interval
from dovetail.gate.metrics import MetricResult
from dovetail.tensor import Array


def vectors(output: Array) -> Array:
    """float64 array (samples, dimensions) of an output (samples, …, dimensions).

    Axes between (tokens, say) are averaged, all of them alike: a model that masks padding has to pool in its graph.

    Raises:
        InvalidInputError: It has no dimensions axis.
    """
    if output.ndim < 2:
        raise InvalidInputError(
            f"an output of shape {list(output.shape)} holds no embeddings; expected (samples, dimensions) or (samples,"
            " tokens, dimensions)"
        )
    wide = output.astype(np.float64)
    pooled: Array = wide.reshape(len(wide), -1, wide.shape[-1]).mean(axis=1)
    return pooled


def row_cosines(left: Array, right: Array) -> Array:
    """float64 array (rows,): cosine of each row with the row of the other; two zero rows are equal, one is not."""
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    products = np.einsum("ij,ij->i", left, right)
    same = np.all(left == right, axis=1).astype(np.float64)
    cosines: Array = np.where(norms > 0, products / np.where(norms > 0, norms, 1.0), same)
    return np.clip(cosines, -1.0, 1.0)


def similarity_metric(reference: Array, candidate: Array, labels: Array) -> MetricResult:
    """Spearman's rank correlation of the similarity of sample pairs with the labels, as in the STS benchmarks.

    Samples 0 and 1 are the first pair, 2 and 3 the second, and so on; similarity is the cosine of their embeddings.

    Args:
        reference: Float array (samples, …, dimensions).
        candidate: Float array of the same shape.
        labels: One score for each pair, any scale, larger is more alike: array (samples / 2,); or (samples,), where the
            score of a pair stands at its first sample.

    Raises:
        InvalidInputError: The samples are not pairs, or the labels are as many as neither samples nor pairs, or equal.

    Source: C. Spearman, The proof and measurement of association between two things (1904); ties have average ranks.
    """
    count = len(reference)
    truth = labels.reshape(-1).astype(np.float64)
    if count % 2 or truth.size not in (count // 2, count):
        raise InvalidInputError(
            f"{count} samples with {truth.size} labels: an embedding model is judged by pairs of consecutive samples,"
            " with one similarity label for each pair (or for each sample, of which the pair's first counts)"
        )
    truth = truth if truth.size == count // 2 else truth[::2]
    before, after = _pair_similarity(reference), _pair_similarity(candidate)
    if truth.size < 2 or np.ptp(truth) == 0:
        raise InvalidInputError("the Spearman correlation is not defined: the labels of all pairs are equal")

    def drop(chosen: Array) -> Array:
        return np.array([_spearman(before[rows], truth[rows]) - _spearman(after[rows], truth[rows]) for rows in chosen])

    return MetricResult(
        "Spearman",
        float(np.nan_to_num(_spearman(before, truth))),
        float(np.nan_to_num(_spearman(after, truth))),
        bootstrap_interval(drop, len(truth)),
    )


def _pair_similarity(output: Array) -> Array:
    rows = vectors(output)
    return row_cosines(rows[::2], rows[1::2])


def _spearman(left: Array, right: Array) -> float:
    """NaN if one of them is constant."""
    a, b = _ranks(left), _ranks(right)
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt(np.dot(a, a) * np.dot(b, b)))
    return float(np.dot(a, b)) / norm if norm else float("nan")


def _ranks(values: Array) -> Array:
    """float64 ranks from 1; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: Array = (last - (counts - 1) / 2)[inverse]
    return ranks
