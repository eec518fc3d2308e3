"""Metrics and baselines of predicted drug synergy."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ...training.scores import pearson
from ...training.synergy.fit import Problem

if TYPE_CHECKING:
    import pandas as pd


RIDGE = 1.0  # penalty of the additive baseline: drugs and cell lines with few scores shrink to the mean


# -- metrics ----------------------------------------------------------------------------------------------------------


def synergy_metrics(problem: Problem) -> dict[str, Callable[[np.ndarray, np.ndarray], float]]:
    """Return metric -> function from true and predicted values, both `(rows,)`, to its value.

    For scores: mean squared error in squared units of the score, Pearson and Spearman correlation. For classes, where
    probabilities of class 1 are predicted: area under the ROC and the precision-recall curve, accuracy and Cohen's
    kappa at 0.5. A metric is NaN if it is undefined, such as a correlation with a constant.

    Example:
        >>> synergy_metrics("regression")["mse"](np.array([1.0, 3.0]), np.array([1.0, 2.0]))
        0.5
    """
    from scipy.stats import rankdata
    from sklearn.metrics import (
        accuracy_score,
        average_precision_score,
        cohen_kappa_score,
        mean_squared_error,
        roc_auc_score,
    )

    def of_both_classes(metric: Callable[..., float]) -> Callable[[np.ndarray, np.ndarray], float]:
        return lambda true, predicted: float(metric(true, predicted)) if np.ptp(true) else float("nan")

    if problem == "regression":
        return {
            "mse": lambda true, predicted: float(mean_squared_error(true, predicted)),
            "pearson": pearson,
            "spearman": lambda true, predicted: pearson(rankdata(true), rankdata(predicted)),
        }
    return {
        "auroc": of_both_classes(roc_auc_score),
        "auprc": of_both_classes(average_precision_score),
        "accuracy": lambda true, predicted: float(accuracy_score(true, predicted > 0.5)),
        "kappa": of_both_classes(lambda true, predicted: cohen_kappa_score(true, predicted > 0.5)),
    }


# -- baselines --------------------------------------------------------------------------------------------------------


def pair_mean(train: "pd.DataFrame", test: "pd.DataFrame") -> np.ndarray:
    """Predict the mean score of the pair in training; for a new pair, the mean of the two drugs' mean scores.

    Example:
        >>> import pandas as pd
        >>> rows = {"drug_a": ["A", "A", "B"], "drug_b": ["B", "C", "C"], "cell_line": ["X", "Y", "X"]}
        >>> train = pd.DataFrame(rows).assign(score=[3.0, 1.0, 2.0])
        >>> pair_mean(train, train[:1]).tolist()
        [3.0]
    """
    everything = train.score.mean()
    of_drug = train.melt(["cell_line", "score"], ["drug_a", "drug_b"], value_name="drug").groupby("drug").score.mean()
    of_drugs = [test[name].map(of_drug).fillna(everything).to_numpy() for name in ("drug_a", "drug_b")]
    of_pair = train.groupby(["drug_a", "drug_b"]).score.mean()
    pairs = of_pair.reindex(list(zip(test.drug_a, test.drug_b, strict=True))).to_numpy()
    return np.where(np.isnan(pairs), np.mean(of_drugs, axis=0), pairs)


def cell_line_mean(train: "pd.DataFrame", test: "pd.DataFrame") -> np.ndarray:
    """Predict the mean score of the cell line in training; for a new cell line, the mean of all scores.

    Example:
        >>> import pandas as pd
        >>> rows = {"drug_a": ["A", "A", "B"], "drug_b": ["B", "C", "C"], "cell_line": ["X", "Y", "X"]}
        >>> train = pd.DataFrame(rows).assign(score=[3.0, 1.0, 2.0])
        >>> cell_line_mean(train, train[:1]).tolist()
        [2.5]
    """
    return test.cell_line.map(train.groupby("cell_line").score.mean()).fillna(train.score.mean()).to_numpy()


def additive(train: "pd.DataFrame", test: "pd.DataFrame") -> np.ndarray:
    """Predict a term for each drug plus a term for the cell line, by ridge regression; a new one has the term 0.

    Example:
        >>> import pandas as pd
        >>> rows = {"drug_a": ["A", "A", "B"], "drug_b": ["B", "C", "C"], "cell_line": ["X", "Y", "X"]}
        >>> train = pd.DataFrame(rows).assign(score=[3.0, 1.0, 2.0])
        >>> additive(train, train).shape
        (3,)
    """
    from sklearn.linear_model import Ridge

    drugs = sorted({*train.drug_a, *train.drug_b})
    cells = sorted(set(train.cell_line))

    def indicators(scores: "pd.DataFrame") -> np.ndarray:
        a, b, cell = (scores[name].to_numpy()[:, None] for name in ("drug_a", "drug_b", "cell_line"))
        return np.hstack([(a == drugs).astype(float) + (b == drugs), cell == cells])

    return Ridge(RIDGE).fit(indicators(train), train.score).predict(indicators(test))


def gradient_boosting(
    train: "pd.DataFrame",
    test: "pd.DataFrame",
    drugs: "pd.DataFrame",
    cell_lines: "pd.DataFrame",
    problem: Problem,
    seed: int = 0,
) -> np.ndarray:
    """Predict scores, or probabilities of class 1, by boosted trees on the same features as the network.

    For each drug feature, the trees get the smaller and the larger value of the pair, so that the order of the drugs
    does not matter.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    def features(scores: "pd.DataFrame") -> np.ndarray:
        a, b = (drugs.loc[scores[name]].to_numpy() for name in ("drug_a", "drug_b"))
        return np.hstack([np.minimum(a, b), np.maximum(a, b), cell_lines.loc[scores.cell_line].to_numpy()])

    known = features(train)
    # Trees only use the order of values. Columns that order the rows alike, as many rare fragments do, are redundant.
    _, kept = np.unique([np.unique(column, return_inverse=True)[1] for column in known.T], axis=0, return_index=True)
    known, asked = known[:, kept], features(test)[:, kept]
    if problem == "regression":
        return HistGradientBoostingRegressor(random_state=seed).fit(known, train.score).predict(asked)
    classifier = HistGradientBoostingClassifier(random_state=seed).fit(known, train.score.astype(int))
    return classifier.predict_proba(asked)[:, 1]
