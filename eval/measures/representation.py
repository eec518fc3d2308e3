"""What an embedding of perturbed cells holds: probes, mixing of batches, and expression decoded from it.

    train (C, D), labels (C,), test (T, D)    ->  linear_scores, neighbor_scores (T, L)  ->  hits (T,)
    embedding (T, D), batches (T,)            ->  inverse_simpson (T,), ilisi
    train (C, D), values (C, G), test (T, D)  ->  decoded (T, G)  ->  gene_correlations (G,), structural_integrity

Letters: C training cells, T test cells, D width of the embedding, L labels, G genes. Probes and iLISI have the settings
of Tx-Evaluation (Valence Labs), which TxFM (Kenyon-Dean et al. 2026) takes over.
"""

import math

import numpy as np
import torch

from .results import Statistic

EPOCHS, WARMUP_EPOCHS, BATCH = 250, 10, 64_768
FIRST_RATE, LARGEST_RATE, DECAY = 3e-5, 1e-3, 1e-6
NEIGHBORS, NEIGHBOR_COMPONENTS, MOST_NEIGHBORS_FROM, CLOSEST = 251, 32, 100_000, 1e-5
LEAST_COMPONENTS, VARIANCE = 32, 0.9
PERPLEXITY, TRIES, TOLERANCE = NEIGHBORS // 3, 50, 1e-5
PENALTIES = (1.0, 1e1, 1e2, 1e3, 1e4, 1e5)
MOST_DECODED_FROM = 10_000
TOPS = (1, 5)


# -- probes -----------------------------------------------------------------------------------------------------------


def rate_at(step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of a step of the linear probe: up in a line for 10 epochs, then down as a cosine to 0.

    Example:
        >>> rate_at(0, steps_per_epoch=1), rate_at(10, steps_per_epoch=1), round(rate_at(130, steps_per_epoch=1), 6)
        (3e-05, 0.001, 0.0005)
    """
    warmup, total = WARMUP_EPOCHS * steps_per_epoch, EPOCHS * steps_per_epoch
    if step < warmup:
        return FIRST_RATE + (LARGEST_RATE - FIRST_RATE) * step / warmup
    return LARGEST_RATE * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2


def linear_scores(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, seed: int, device: torch.device | str = "cpu"
) -> np.ndarray:
    """Return the scores of labels for test cells `(T, L)`, by one linear layer that is trained on training cells.

    Cross-entropy, 250 epochs of AdamW with weight decay 1e-6, up to 64,768 cells a batch. Features are not
    standardised. The layer begins at zero, which is ours: the loss is convex, and in a narrow embedding random weights
    would be larger than what a small screen, with one step an epoch, moves them by.

    Args:
        train: Embedding of the training cells, `(C, D)`.
        labels: Number of the label of each of them, 0 to L - 1, `(C,)`.
        test: Embedding of the test cells, `(T, D)`.
        seed: Seed of the order of the cells.
        device: Device on which the layer is trained.

    Source: Tx-Evaluation, linear probing.

    Example:
        >>> labels = np.repeat([0, 1], 20)
        >>> embedding = np.eye(2)[labels] + np.random.default_rng(0).normal(scale=0.1, size=(40, 2))
        >>> (linear_scores(embedding, labels, embedding, seed=0).argmax(1) == labels).all()
        np.True_
    """
    features, targets = torch.from_numpy(np.ascontiguousarray(train, np.float32)), torch.from_numpy(labels).long()
    features, targets = features.to(device), targets.to(device)
    steps, generator = math.ceil(len(features) / BATCH), torch.Generator().manual_seed(seed)
    weight = torch.zeros(train.shape[1], int(labels.max()) + 1, device=device, requires_grad=True)
    bias = torch.zeros(weight.shape[1], device=device, requires_grad=True)
    optimizer = torch.optim.AdamW([weight, bias], weight_decay=DECAY)
    for epoch in range(EPOCHS):
        order = torch.randperm(len(features), generator=generator).to(device)
        for step, rows in enumerate(order.split(BATCH)):
            optimizer.param_groups[0]["lr"] = rate_at(epoch * steps + step, steps)
            loss = torch.nn.functional.cross_entropy(features[rows] @ weight + bias, targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    asked = torch.from_numpy(np.ascontiguousarray(test, np.float32)).to(device)
    return (asked @ weight + bias).detach().cpu().numpy()


def neighbor_scores(train: np.ndarray, labels: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    """Return the votes of the 251 nearest training cells for the labels of test cells, `(T, L)`, shares of 1.

    Distances are Euclidean, on 32 principal components of the training cells; a cell votes with the weight
    1 / (distance + 1e-5). Of more than 100,000 training cells as many are drawn. The arguments are those of
    `linear_scores`.

    Source: Tx-Evaluation, k-NN.

    Example:
        >>> labels = np.repeat([0, 1], 20)
        >>> embedding = 9.0 * np.eye(2)[labels] + np.random.default_rng(0).normal(scale=0.1, size=(40, 2))
        >>> (neighbor_scores(embedding, labels, embedding, seed=0).argmax(1) == labels).all()
        np.True_
    """
    from sklearn.decomposition import PCA
    from sklearn.neighbors import KNeighborsClassifier

    rows = np.sort(np.random.default_rng(seed).permutation(len(train))[:MOST_NEIGHBORS_FROM])
    train, labels = train[rows], labels[rows]
    components = PCA(min(NEIGHBOR_COMPONENTS, *train.shape), random_state=seed).fit(train)
    voters = KNeighborsClassifier(min(NEIGHBORS, len(train)), weights=lambda distances: 1 / (distances + CLOSEST))
    voters.fit(components.transform(train), labels)
    scores = np.zeros((len(test), int(labels.max()) + 1))
    scores[:, voters.classes_] = voters.predict_proba(components.transform(test))
    return scores


def hits(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return for each test cell 1 if its label has the best score, 0.5 if it is among the best five, else 0.

    Labels with the same score count as better than the right one, so that a label without votes is never a hit.

    Args:
        scores: Scores of labels, `(T, L)`.
        labels: Number of the right label of each cell, `(T,)`.

    Source: TxFM, whose probes are the mean of top-1 and top-5 accuracy.

    Example:
        >>> hits(np.array([[0.9, 0.1, 0, 0, 0, 0, 0]] * 3), np.array([0, 1, 2])).tolist()
        [1.0, 0.5, 0.0]
    """
    own = scores[np.arange(len(labels)), labels]
    better = (scores >= own[:, None]).sum(1) - 1
    return np.mean([better < top for top in TOPS], axis=0)


# -- mixing of batches ------------------------------------------------------------------------------------------------


def ilisi(embedding: np.ndarray, batches: np.ndarray, seed: int) -> np.ndarray:
    """Return how well batches are mixed around each cell, `(T,)`: 0 if all neighbours are of one batch, 1 at most.

    It is (inverse Simpson index - 1) / (number of batches - 1), as scIB scales it; TxFM does not say how its values
    between 0 and 1 are scaled. Neighbours are found on at least 32 principal components, and as many as hold 90 % of
    the variance.

    Args:
        embedding: Embedding of the cells, `(T, D)`.
        batches: Batch of each cell, `(T,)`; two or more batches.
        seed: Seed of the solver.

    Source: Korsunsky et al. 2019, Harmony (LISI); Tx-Evaluation for the components and the perplexity of 83.

    Example:
        >>> embedding = np.random.default_rng(0).normal(size=(600, 3))
        >>> ilisi(embedding, np.tile(["a", "b"], 300), seed=0).mean() > 0.9
        np.True_
    """
    from sklearn.decomposition import PCA

    most = min(embedding.shape)
    found = PCA(most, svd_solver="full").fit(embedding)
    needed = int(np.searchsorted(found.explained_variance_ratio_.cumsum(), VARIANCE)) + 1
    turned = found.transform(embedding)[:, : min(max(LEAST_COMPONENTS, needed), most)]
    return (inverse_simpson(turned, batches) - 1) / (len(np.unique(batches)) - 1)


def inverse_simpson(embedding: np.ndarray, batches: np.ndarray, perplexity: int = PERPLEXITY) -> np.ndarray:
    """Return the inverse Simpson index of the batches around each cell, `(T,)`: 1 to the number of batches.

    Three times as many nearest cells as the perplexity, the cell itself among them, which then does not count. They
    weigh exp(-b distance), where b is found by bisection so that the entropy of the weights is the logarithm of the
    perplexity.

    Args:
        embedding: Embedding of the cells, `(T, D)`.
        batches: Batch of each cell, `(T,)`.
        perplexity: Effective number of neighbours; a third of the cells where there are too few.

    Source: Korsunsky et al. 2019, Harmony: LISI.

    Example:
        >>> corners = np.eye(6)  # all equally far from each other
        >>> inverse_simpson(corners, np.array(["a", "a", "a", "b", "b", "b"]), perplexity=2).round(2).tolist()
        [1.92, 1.92, 1.92, 1.92, 1.92, 1.92]
    """
    from sklearn.neighbors import NearestNeighbors

    ids = np.unique(batches, return_inverse=True)[1]
    perplexity = max(min(perplexity, len(ids) // 3), 1)
    distances, nearest = NearestNeighbors(n_neighbors=3 * perplexity - 1).fit(embedding).kneighbors()
    weights = kernel(distances, math.log(perplexity))
    shares = np.stack([(weights * (ids[nearest] == batch)).sum(1) for batch in range(ids.max() + 1)], axis=1)
    return 1 / (shares**2).sum(1)


def kernel(distances: np.ndarray, entropy: float) -> np.ndarray:
    """Return weights exp(-b distance) of each row of distances `(T, N)`, with sum 1 and the given entropy in nats."""
    nearest = distances - distances.min(1, keepdims=True)  # the same weights, and one of them is not 0
    slope = np.ones(len(distances))
    low, high = np.zeros(len(distances)), np.full(len(distances), np.inf)
    for _ in range(TRIES):
        weights = np.exp(-slope[:, None] * nearest)
        sums = weights.sum(1)
        found = np.log(sums) + slope * (weights * nearest).sum(1) / sums
        if (np.abs(found - entropy) < TOLERANCE).all():
            break
        is_wide = found > entropy
        low, high = np.where(is_wide, slope, low), np.where(is_wide, high, slope)
        slope = np.where(np.isinf(high), 2 * slope, (low + np.minimum(high, 1e300)) / 2)
    return weights / sums[:, None]


# -- expression decoded from an embedding -----------------------------------------------------------------------------


def decoded(train: np.ndarray, values: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    """Return expression of test cells `(T, G)`, decoded from their embedding by ridge regression.

    Features are standardised. The penalty, one for all genes, is the one with the smallest error of training cells that
    are left out in turn. Of more than 10,000 training cells as many are drawn.

    Args:
        train: Embedding of the training cells, `(C, D)`.
        values: Their expression, `log1p` of counts per 10,000, `(C, G)`.
        test: Embedding of the test cells, `(T, D)`.
        seed: Seed of the draw.

    Source: TxFM, which says that it decodes linearly; the code of Tx-Evaluation has three hidden layers.

    Example:
        >>> embedding = np.random.default_rng(0).normal(size=(60, 2))
        >>> values = embedding @ np.array([[1.0, 0.0, 2.0], [0.0, 1.0, -1.0]])
        >>> bool(np.abs(decoded(embedding[:50], values[:50], embedding[50:], seed=0) - values[50:]).max() < 0.2)
        True
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rows = np.sort(np.random.default_rng(seed).permutation(len(train))[:MOST_DECODED_FROM])
    model = make_pipeline(StandardScaler(), RidgeCV(PENALTIES))
    return model.fit(train[rows], values[rows]).predict(test)


def gene_correlations(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Return the Spearman correlation of each gene over cells, of the genes that vary in the truth; 0 with a constant.

    Args:
        truth: Expression, `(T, G)`.
        predicted: Predicted expression, `(T, G)`.

    Source: Tx-Evaluation, reconstruction.

    Example:
        >>> truth = np.array([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]])
        >>> gene_correlations(truth, np.array([[0.0, 1.0], [7.0, 2.0], [8.0, 3.0]])).round(6).tolist()
        [1.0]
    """
    from scipy.stats import rankdata

    varies = np.ptp(truth, axis=0) > 0
    one, other = (rankdata(values[:, varies], axis=0) for values in (truth, predicted))
    one, other = one - one.mean(0), other - other.mean(0)
    sizes = np.sqrt((one**2).sum(0) * (other**2).sum(0))
    return np.divide((one * other).sum(0), sizes, out=np.zeros(len(sizes)), where=sizes > 0)


def structural_integrity(
    truth: np.ndarray, predicted: np.ndarray, batches: np.ndarray, is_control: np.ndarray
) -> Statistic:
    """Return a function from indices of cells to the structural integrity of their predicted expression, at most 1.

    With P and Y the predicted and the true values of the n cells of a batch, both less the true mean of the control
    cells of the batch: 1 - D / D_max, where D is the mean over batches of |P - Y| / n, D_max twice the mean of |Y| / n,
    and | | the Frobenius norm. Predicting the mean of the controls gives 0.5.

    Args:
        truth: Expression, `(T, G)`.
        predicted: Predicted expression, `(T, G)`.
        batches: Batch of each cell, `(T,)`.
        is_control: Whether each cell is a control cell, bool `(T,)`; each batch has one.

    Source: Tx-Evaluation, structural integrity.

    Example:
        >>> truth, batches = np.array([[0.0], [2.0]]), np.array(["a", "a"])
        >>> predicted = np.array([[0.0], [1.0]])
        >>> structural_integrity(truth, predicted, batches, np.array([True, False]))(np.arange(2))
        0.75
    """
    names, ids = np.unique(batches, return_inverse=True)
    centres = np.stack([truth[(ids == batch) & is_control].mean(0) for batch in range(len(names))])
    errors = ((predicted - truth) ** 2).sum(1)
    sizes = ((truth - centres[ids]) ** 2).sum(1)

    def statistic(rows: np.ndarray) -> float:
        number = np.bincount(ids[rows], minlength=len(names))
        is_there = number > 0
        of_batches = [
            np.sqrt(np.bincount(ids[rows], squares[rows], len(names))[is_there]) / number[is_there]
            for squares in (errors, sizes)
        ]
        return float(1 - of_batches[0].mean() / (2 * of_batches[1].mean()))

    return statistic
