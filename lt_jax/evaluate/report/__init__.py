"""The report: report.json, figures and one self-contained page, from checked inputs."""

from lt_jax.evaluate.report.compose import draws as draws
from lt_jax.evaluate.report.compose import predictions_of as predictions_of
from lt_jax.evaluate.report.compose import read as read
from lt_jax.evaluate.report.compose import strict as strict
from lt_jax.evaluate.report.compose import text_table as text_table
from lt_jax.evaluate.report.compose import write as write
from lt_jax.evaluate.report.inputs import Arm as Arm
from lt_jax.evaluate.report.inputs import Dataset as Dataset
from lt_jax.evaluate.report.inputs import Gallery as Gallery
from lt_jax.evaluate.report.inputs import Learning as Learning
from lt_jax.evaluate.report.inputs import Pair as Pair
from lt_jax.evaluate.report.inputs import Pool as Pool
from lt_jax.evaluate.report.inputs import ReportInputs as ReportInputs
from lt_jax.evaluate.report.inputs import Run as Run
from lt_jax.evaluate.report.inputs import Source as Source
from lt_jax.evaluate.report.inputs import StageCost as StageCost
