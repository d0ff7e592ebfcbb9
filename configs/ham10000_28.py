r"""HAM10000 at 28 px, real images alone: the yardstick against DermaMNIST's published range.

    python -m lt_jax.main --config=configs/ham10000_28.py --workdir=runs/ham28 \
        --config.data.root=DIR --config.runtime.cpu_devices=1

DermaMNIST is HAM10000 at 28 px, split by image: ResNet-18 reaches accuracy 0.734 +- 0.006 and AUC
0.88-0.92 there. Here all images of a lesion stay on one side, so the same model would score lower.

Takes about 50 minutes on one of two shared cores; gives (3 seeds, 7,955 of the 10,015 images)
accuracy 0.748 +- 0.009 and AUROC 0.921 +- 0.003 with the ViT, 0.730 +- 0.002 and 0.909 +- 0.003
with the ResNet: see experiments/yardstick/README.md.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import ham10000
from lt_jax import config as config_lib


def get_config() -> ConfigDict:
    """The locked config: the recipe of `ham10000` with a ViT and a small ResNet."""
    config: Any = ham10000.get_config()
    with config.unlocked():
        config.data.image_size = 28
        config.classify.update(steps=1200, seeds=(0, 1, 2))
        config.classify.model.resnet.update(channels=(16, 32, 64), blocks=(1, 1, 1))
        config.evaluate.baseline = "vit_ce"
        config.classify.arms = config_lib.arms(
            vit_ce={"network": "vit"}, resnet_ce={"network": "resnet"}
        )
    return config
