"""Dictionary learning, data-parallel: the ranks exchange codes and samples as factors."""

from __future__ import annotations

from hashlib import blake2b
from itertools import chain, repeat
from typing import Any, ClassVar

import numpy as np

import sfb
from sfb.models.codes.coder import LOOSE, Coder, samples_of, warn_of
from sfb.models.codes.coding import coding_loss, encode
from sfb.models.collective import batches, place, seed_of, take, threads_of, total
from sfb.models.estimator import Number
from sfb.models.finite import check_narrowed
from sfb.models.ranks import Ranks
from sfb.models.samples import check_samples
from sfb.models.spectrum import principal

__all__ = ["DictionaryLearning", "MiniBatchDictionaryLearning"]


class DictionaryLearning(Coder):
    """Dictionary learning, as `sklearn.decomposition.DictionaryLearning`, of which every rank has a shard of samples.

    Minimises ½‖X − CA‖² + alpha·‖C‖₁ over the samples of all ranks, by codes C and atoms A, rows of a K×D dictionary in
    the unit ball. Coordinate descent improves the codes of each rank's samples. Then the ranks sum CᵀX and CᵀC, as the
    factors C and X where these are smaller, and each atom takes the best value in turn (Mairal, Bach, Ponce and Sapiro,
    "Online Learning for Matrix Factorization and Sparse Coding", JMLR 11, 2010). Samples take the place of atoms that
    no code uses.

    Args:
        n_components: The number of atoms K; None for as many as features.
        alpha: Weight of the penalty, ≥ 0.
        max_iter: Most iterations, ≥ 1.
        tol: Decrease of the objective, relative to it, below which the iterations end, ≥ 0.
        transform_algorithm: How `transform` finds codes: "lasso_cd" minimises the objective; "lasso_lars", "lars",
            "omp" and "threshold" are those of `sklearn.decomposition.sparse_encode`.
        transform_n_nonzero_coefs: Atoms of a code, for "lars" and "omp"; None for a tenth of the features.
        transform_alpha: Weight of the penalty in `transform`, or threshold; None for ``alpha``.
        dict_init: First atoms, at most K×D; None for singular vectors of all samples. Those of rank 0 count.
        split_sign: Whether `transform` gives the positive and the negative parts of codes, side by side.
        random_state: Seed of singular vectors and replaced atoms; that of rank 0 counts.
        positive_code: Whether codes must not be negative.
        positive_dict: Whether atoms must not be negative.
        transform_max_iter: Most sweeps of coordinate descent over the code of a sample, ≥ 1.
        comm: Ranks that fit together, an `MPI.Intracomm`; None for COMM_WORLD where MPI has been started, else this
            process alone.

    Attributes:
        components_: A, K×D, the same bits on all ranks.
        error_: The objective after each iteration, over the samples of all ranks.
        n_iter_: Number of iterations.
        n_features_in_: Number of features D.

    >>> import numpy as np
    >>> from sfb.models import DictionaryLearning
    >>> X = np.repeat(np.eye(3), 4, axis=0) * np.arange(1, 13).reshape(-1, 1)
    >>> model = DictionaryLearning(3, alpha=0.1, random_state=0).fit(X)
    >>> np.abs(model.components_).round(2).max(axis=0)
    array([1., 1., 1.])
    """

    def __init__(
        self,
        n_components: int | None = None,
        *,
        alpha: float = 1.0,
        max_iter: int = 1000,
        tol: float = 1e-8,
        transform_algorithm: str = "lasso_cd",
        transform_n_nonzero_coefs: int | None = None,
        transform_alpha: float | None = None,
        dict_init: Any = None,
        split_sign: bool = False,
        random_state: Any = None,
        positive_code: bool = False,
        positive_dict: bool = False,
        transform_max_iter: int = 1000,
        comm: Any = None,
    ) -> None:
        self.n_components = n_components
        self.alpha = alpha
        self.max_iter = max_iter
        self.tol = tol
        self.transform_algorithm = transform_algorithm
        self.transform_n_nonzero_coefs = transform_n_nonzero_coefs
        self.transform_alpha = transform_alpha
        self.dict_init = dict_init
        self.split_sign = split_sign
        self.random_state = random_state
        self.positive_code = positive_code
        self.positive_dict = positive_dict
        self.transform_max_iter = transform_max_iter
        self.comm = comm

    def fit(self, X: Any, y: Any = None) -> DictionaryLearning:
        """Fit the samples of all ranks; collective.

        Args:
            X: N×D features of this rank's samples; N may be 0 on some ranks.
            y: Ignored.

        Returns:
            The estimator.

        Raises:
            TypeError, ValueError: What a rank passed, or a parameter, is wrong; on every rank.
        """
        with Ranks(self.comm) as ranks:
            self._agree(ranks)
            x = check_samples(self, ranks, X)
            seed = seed_of(ranks, self.random_state)
            atoms = self._first(ranks, x, seed)
            undone = self._alternate(ranks, x, atoms, np.random.RandomState(seed))
            undone = sum(ranks.gather(undone))
            if ranks.rank == 0:
                warn_of(undone, stacklevel=2)
        self.components_ = atoms
        self.n_iter_ = len(self.error_)
        return self

    def _guess(self, ranks: Ranks, x: np.ndarray, count: int, seed: int) -> np.ndarray:
        """Return singular vectors; directions in which nothing lies are left to samples; collective."""
        found, spread = principal(ranks, x, min(count, x.shape[1]), seed, centred=False)
        return found[spread > np.sqrt(np.finfo(x.dtype).eps) * spread.max(initial=0)]

    def _alternate(self, ranks: Ranks, x: np.ndarray, atoms: np.ndarray, rng: Any) -> int:
        """Improve codes and atoms in turn, and return how many codes are not optimal in the end; collective."""
        features, threads = x.shape[1], threads_of(ranks)
        both = np.empty((len(x), features + len(atoms)), x.dtype)  # X and C side by side
        both[:, :features] = x
        codes, undone = np.zeros((len(x), len(atoms)), x.dtype), 0
        self.error_: list[float] = []
        for _ in range(self.max_iter):
            _, undone = encode(
                x,
                atoms,
                self.alpha,
                codes=codes,
                positive=self.positive_code,
                tol=LOOSE,
                max_iter=self.transform_max_iter,
                threads=threads,
            )
            both[:, features:] = codes
            self._improve(ranks, x, codes, total(ranks, sfb.Factors(codes, both)), atoms, rng)
            self.error_.append(float(ranks.sum(np.array([coding_loss(x, codes, atoms, self.alpha)]))[0]))
            if len(self.error_) > 1 and self.error_[-2] - self.error_[-1] < self.tol * self.error_[-1]:
                break
        return undone


class MiniBatchDictionaryLearning(Coder):
    """Dictionary learning by mini-batches, as `sklearn.decomposition.MiniBatchDictionaryLearning`.

    The objective is that of `DictionaryLearning`. A step takes the samples of a batch from all ranks, from each in
    proportion to its shard. Codes and samples of the batch travel as factors, and every rank adds them to sums CᵀX and
    CᵀC in which earlier batches fade; then each atom takes the best value for the sums in turn, and is projected onto
    the unit ball (Mairal, Bach, Ponce and Sapiro, "Online Learning for Matrix Factorization and Sparse Coding", JMLR
    11, 2010, sections 3.2 and 3.4.3). The sums lie once per node.

    Args:
        n_components: The number of atoms K; None for as many as features.
        alpha: Weight of the penalty, ≥ 0.
        max_iter: Most passes over the samples, ≥ 1.
        batch_size: Samples of a step, of all ranks together, ≥ 1.
        shuffle: Whether to shuffle the samples of each rank before they are divided into batches.
        dict_init: First atoms, at most K×D; None for samples of length 1. Those of rank 0 count.
        transform_algorithm: As in `DictionaryLearning`.
        transform_n_nonzero_coefs: As in `DictionaryLearning`.
        transform_alpha: As in `DictionaryLearning`.
        split_sign: As in `DictionaryLearning`.
        random_state: Seed of first atoms, order and replaced atoms; that of rank 0 counts.
        positive_code: Whether codes must not be negative.
        positive_dict: Whether atoms must not be negative.
        transform_max_iter: Most sweeps of coordinate descent over the code of a sample, ≥ 1.
        tol: Norm of the change of the dictionary in a step, divided by K, at which `fit` ends; 0 for none.
        max_no_improvement: Steps without a new least value of the smoothed objective, after which `fit` ends; None for
            any number.
        comm: Ranks that fit together, an `MPI.Intracomm`; None for COMM_WORLD where MPI has been started, else this
            process alone.

    Attributes:
        components_: A, K×D, the same bits on all ranks.
        n_iter_: Number of passes over the samples that `fit` began.
        n_steps_: Number of steps.
        n_features_in_: Number of features D.

    >>> import numpy as np
    >>> from sfb.models import MiniBatchDictionaryLearning
    >>> X = np.repeat(np.eye(3), 4, axis=0) * np.arange(1, 13).reshape(-1, 1)
    >>> model = MiniBatchDictionaryLearning(3, alpha=0.1, batch_size=4, max_iter=50, random_state=0).fit(X)
    >>> bool(np.linalg.norm(model.inverse_transform(model.transform(X)) - X) < 1)
    True
    """

    numbers: ClassVar = {**Coder.numbers, "batch_size": Number(1, whole=True)}

    def __init__(
        self,
        n_components: int | None = None,
        *,
        alpha: float = 1.0,
        max_iter: int = 1000,
        batch_size: int = 256,
        shuffle: bool = True,
        dict_init: Any = None,
        transform_algorithm: str = "lasso_cd",
        transform_n_nonzero_coefs: int | None = None,
        transform_alpha: float | None = None,
        split_sign: bool = False,
        random_state: Any = None,
        positive_code: bool = False,
        positive_dict: bool = False,
        transform_max_iter: int = 1000,
        tol: float = 1e-3,
        max_no_improvement: int | None = 10,
        comm: Any = None,
    ) -> None:
        self.n_components = n_components
        self.alpha = alpha
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.dict_init = dict_init
        self.transform_algorithm = transform_algorithm
        self.transform_n_nonzero_coefs = transform_n_nonzero_coefs
        self.transform_alpha = transform_alpha
        self.split_sign = split_sign
        self.random_state = random_state
        self.positive_code = positive_code
        self.positive_dict = positive_dict
        self.transform_max_iter = transform_max_iter
        self.tol = tol
        self.max_no_improvement = max_no_improvement
        self.comm = comm

    def fit(self, X: Any, y: Any = None) -> MiniBatchDictionaryLearning:
        """Fit the samples of all ranks; collective.

        Args:
            X: N×D features of this rank's samples; N may be 0 on some ranks.
            y: Ignored.

        Returns:
            The estimator.

        Raises:
            TypeError, ValueError: What a rank passed, or a parameter, is wrong; on every rank.
        """
        with Ranks(self.comm) as ranks:
            self._agree(ranks)
            x = check_samples(self, ranks, X)
            seed = seed_of(ranks, self.random_state)
            atoms = self._first(ranks, x, seed)
            count, features = atoms.shape
            rule = sfb.optim.SGD(place(ranks, np.zeros((count, features + count), x.dtype)), lr=1.0)
            self.n_steps_ = self._descend(ranks, x, atoms, rule, seed)
            self._sums = np.array(rule.array)
        self.components_ = atoms
        return self

    def partial_fit(self, X: Any, y: Any = None) -> MiniBatchDictionaryLearning:
        """Take one step with the samples of all ranks; collective.

        Arguments, result and errors are those of `fit`. The first call, unless after `fit`, also makes the first atoms
        of its samples.

        Raises:
            MismatchError: The ranks have different dictionaries; on every rank.
        """
        with Ranks(self.comm) as ranks:
            self._agree(ranks)
            fresh = not hasattr(self, "components_")
            model = "no dictionary yet" if fresh else f"dictionary {blake2b(self.components_.tobytes()).hexdigest()}"
            ranks.compare("partial_fit", model if fresh else f"{model} after {self.n_steps_} steps")
            x = check_samples(self, ranks, X, call="partial_fit", first=fresh)
            seed = seed_of(ranks, self.random_state, "partial_fit")
            if fresh:
                atoms = self._first(ranks, x, seed)
                self._sums = np.zeros((len(atoms), sum(atoms.shape)), x.dtype)
                self.n_steps_ = 0
            else:
                atoms = self.components_.copy()
                with ranks.together("partial_fit"):
                    check_narrowed(x, atoms.dtype)
                x = x.astype(atoms.dtype, copy=False)
            rng = np.random.RandomState([seed, self.n_steps_])
            rule = sfb.optim.SGD(self._sums, lr=1.0)
            self._step(ranks, x, sum(ranks.gather(len(x))), atoms, rule, rng, self.n_steps_, threads_of(ranks))
        self.n_steps_ += 1
        self.components_ = atoms
        return self

    def _guess(self, ranks: Ranks, x: np.ndarray, count: int, seed: int) -> np.ndarray:
        """Return samples of length 1; singular vectors take several times as many steps; collective."""
        samples = sum(ranks.gather(len(x)))
        found = samples_of(ranks, x, np.random.RandomState(seed).permutation(samples)[:count])
        lengths = np.linalg.norm(found, axis=1, keepdims=True)
        return ranks.first(found / np.where(lengths > 0, lengths, 1))

    def _descend(self, ranks: Ranks, x: np.ndarray, atoms: np.ndarray, rule: sfb.optim.Optimizer, seed: int) -> int:
        """Take steps until the dictionary changes little or the objective improves no more; collective."""
        threads, sizes = threads_of(ranks), ranks.gather(len(x))
        own, common = np.random.RandomState([seed, ranks.rank]), np.random.RandomState(seed)
        size = min(int(self.batch_size), sum(sizes))
        order = own.permutation(len(x)) if self.shuffle else np.arange(len(x))
        epoch = list(batches(order, sizes, size))
        smooth, best, stale, step = None, np.inf, 0, 0
        for step, (mine, count) in enumerate(chain.from_iterable(repeat(epoch, self.max_iter)), 1):
            before = atoms.copy()
            cost = self._step(ranks, x[mine], count, atoms, rule, common, step - 1, threads) / count
            # Rank 0 alone says how much has changed, so that all ranks end at the same step.
            change = float(np.linalg.norm(atoms - before)) if ranks.rank == 0 else 0.0
            cost, change = map(float, ranks.sum(np.array([cost, change])))
            if step <= min(100, len(epoch)):  # the atoms are too far from those of the end
                continue
            part = min(1.0, count / (sum(sizes) + 1))
            smooth = cost if smooth is None else smooth * (1 - part) + cost * part
            stale = 0 if smooth < best else stale + 1
            best = min(best, smooth)
            if (self.tol > 0 and change <= self.tol * len(atoms)) or (
                self.max_no_improvement is not None and stale >= self.max_no_improvement
            ):
                break
        self.n_iter_ = -(-step // len(epoch))
        return step

    def _step(
        self,
        ranks: Ranks,
        x: np.ndarray,
        count: int,
        atoms: np.ndarray,
        rule: sfb.optim.Optimizer,
        rng: Any,
        step: int,
        threads: int,
    ) -> float:
        """Improve the atoms by a batch, and return the objective of this rank's samples before; collective.

        Args:
            ranks: The ranks.
            x: Samples of this rank.
            count: Samples of all ranks.
            atoms: A, K×D.
            rule: Gradient descent whose parameter are the sums: its decay lets them fade.
            rng: A generator in the same state on all ranks.
            step: Steps taken before.
            threads: Threads of this rank.
        """
        codes, _ = encode(
            x,
            atoms,
            self.alpha,
            positive=self.positive_code,
            tol=LOOSE,
            max_iter=self.transform_max_iter,
            threads=threads,
        )
        cost = coding_loss(x, codes, atoms, self.alpha)
        seen = (step + 1) * count if step < count - 1 else count**2 + step + 1 - count
        # sums ← β·sums + Cᵀ[X C]/count, as w ← w − (g + (1 − β)·w) for the gradient g = −Cᵀ[X C]/count.
        rule.weight_decay = count / (seen + 1)
        take(ranks, sfb.Factors(codes / -count, np.hstack([x, codes])), rule)
        self._improve(ranks, x, codes, rule.array, atoms, rng)
        return cost

    def _check_parameters(self) -> None:
        super()._check_parameters()
        if self.max_no_improvement is not None:
            Number(0, whole=True).check("max_no_improvement", self.max_no_improvement)
