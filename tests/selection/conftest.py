"""The reference implementation of published scores, where it is installed."""

import pytest


@pytest.fixture
def pytorch_ood():
    """Its detectors: an independent implementation, not among the requirements."""
    return pytest.importorskip(
        "pytorch_ood.detector",
        reason="needs pytorch-ood, which brings torch: pip install pytorch-ood",
        exc_type=ImportError,
    )
