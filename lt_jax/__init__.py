"""Long-tailed image classification with generated data: diffusion, selection, mixing, evidence."""

__version__ = "0.1.0"
