r"""CIFAR-100-LT, imbalance 100: the recipe of `cifar10_lt` with a hundred classes.

    python -m lt_jax.main --config=configs/cifar100_lt.py --workdir=runs/cifar100_lt \
        --config.data.root=DIR

DIR holds the set as tfds prepares it, which is done once, wherever TensorFlow is installed:

    tfds.builder("cifar100", file_format="array_record", data_dir=DIR).download_and_prepare()

It needs a GPU. Test is the official test split of 10,000; of the official 500 a class those with a
near-duplicate in test are dropped, 10 go to val and to policy_val each, and train falls from about
480 to 4, where published tables have 500 to 5.

Not run yet. Takes as long as `cifar10_lt`: some hours on an H200. What it gives is not known.
Published accuracies, with a ResNet-32 on the official splits (500 to 5 to train): 44.6 with
cross-entropy, 49.0 with LDAM-DRW, 49.4 with balanced softmax, 56.7 with NCL, 49.3 to 51.9 with
images of generators.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import cifar10_lt


def get_config() -> ConfigDict:
    """The locked config."""
    config: Any = cifar10_lt.get_config()
    with config.unlocked():
        config.data.source = "tfds:cifar100"
        # Of a hundred classes the extractor is seldom sure: chance is 0.01.
        config.synthesize.selection.label_probability = 0.1
        config.evaluate.update(group_by="counts", head_above=100, tail_below=20)
    return config
