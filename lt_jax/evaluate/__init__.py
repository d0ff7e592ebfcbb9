"""What predictions and images are worth, how sure that is, and the report, floor by floor.

metrics/      figures of one set of predictions, or of many reweighted copies of it
statistics/   intervals, tests and their families, curves, detection, tables
images/       fidelity, diversity, privacy, artefacts, maps of features
report/       report.json, its charts and the page
turing/       a page for human readers, and their score
"""
