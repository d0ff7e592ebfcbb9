"""Out-of-distribution scores by name: what a config asks for, as one ensemble.

A scorer is fitted to real train images and scores others against the class that each is meant to
show: `gaussian` (Mahalanobis distance, relative too), `neighbors` (deep nearest neighbours),
`subspace` (residual, ViM), `confidence` (energy, softmax, logit) of the extractor's features and
logits, `denoising` of the generator's own errors.
"""

from lt_jax.config import SelectionConfig
from lt_jax.selection.confidence import Energy, MaxLogit, MaxSoftmax
from lt_jax.selection.denoising import Denoising
from lt_jax.selection.ensemble import Ensemble
from lt_jax.selection.gaussian import Mahalanobis, RelativeMahalanobis
from lt_jax.selection.neighbors import KNearest
from lt_jax.selection.scorer import Evidence as Evidence
from lt_jax.selection.scorer import FitError as FitError
from lt_jax.selection.scorer import Scorer as Scorer
from lt_jax.selection.subspace import Residual, ViM


def make(config: SelectionConfig, num_classes: int) -> Ensemble:
    """The scores that a config names, in its order; a name given twice counts once."""
    scorers: dict[str, Scorer] = {
        "mahalanobis": Mahalanobis(num_classes),
        "mahalanobis_per_class": Mahalanobis(num_classes, tied=False),
        "relative_mahalanobis": RelativeMahalanobis(num_classes),
        "knn": KNearest(num_classes, config.neighbors),
        "residual": Residual(num_classes, config.explained),
        "vim": ViM(num_classes, config.explained),
        "energy": Energy(num_classes),
        "max_softmax": MaxSoftmax(num_classes),
        "max_logit": MaxLogit(num_classes),
        "denoising": Denoising(num_classes),
    }
    members = tuple((name, scorers[name]) for name in dict.fromkeys(config.scores))
    return Ensemble(members, num_classes, config.folds, config.pooling)
