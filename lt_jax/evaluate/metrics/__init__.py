"""Figures of one set of predictions: classification, ranking, confusion, average precision."""

from lt_jax.evaluate.metrics.classification import LEAST_PROBABILITY as LEAST_PROBABILITY
from lt_jax.evaluate.metrics.classification import LOWER_IS_BETTER as LOWER_IS_BETTER
from lt_jax.evaluate.metrics.classification import METRICS as METRICS
from lt_jax.evaluate.metrics.classification import PER_CLASS as PER_CLASS
from lt_jax.evaluate.metrics.classification import PRIMARY as PRIMARY
from lt_jax.evaluate.metrics.classification import absent_classes as absent_classes
from lt_jax.evaluate.metrics.classification import balanced_accuracy as balanced_accuracy
from lt_jax.evaluate.metrics.classification import brier as brier
from lt_jax.evaluate.metrics.classification import confidence_gaps as confidence_gaps
from lt_jax.evaluate.metrics.classification import count as count
from lt_jax.evaluate.metrics.classification import ece as ece
from lt_jax.evaluate.metrics.classification import evaluate as evaluate
from lt_jax.evaluate.metrics.classification import f1_of as f1_of
from lt_jax.evaluate.metrics.classification import from_parts as from_parts
from lt_jax.evaluate.metrics.classification import log_loss as log_loss
from lt_jax.evaluate.metrics.classification import logit_adjust as logit_adjust
from lt_jax.evaluate.metrics.classification import mean_defined as mean_defined
from lt_jax.evaluate.metrics.classification import parts as parts
from lt_jax.evaluate.metrics.classification import per_class as per_class
from lt_jax.evaluate.metrics.classification import recall_of as recall_of
from lt_jax.evaluate.metrics.classification import recall_per_class as recall_per_class
from lt_jax.evaluate.metrics.classification import softmax as softmax
