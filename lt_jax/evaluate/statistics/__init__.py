"""How sure a figure is: intervals, tests, families of tests, and the one table writer."""

from lt_jax.evaluate.statistics.arms import ArmPredictions as ArmPredictions
from lt_jax.evaluate.statistics.arms import ArmStatistics as ArmStatistics
from lt_jax.evaluate.statistics.arms import analyse as analyse
from lt_jax.evaluate.statistics.arms import evidence as evidence
from lt_jax.evaluate.statistics.arms import summarise as summarise
from lt_jax.evaluate.statistics.results import Comparison as Comparison
from lt_jax.evaluate.statistics.results import Summary as Summary
