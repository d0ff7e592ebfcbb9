r"""HAM10000 at 32 px: rare lesions inpainted into images of the head class, after arXiv:2605.03221.

    python -m lt_jax.main --config=configs/ham10000_inpaint.py --workdir=runs/ham_inpaint \
        --config.data.root=DIR

DIR holds HAM10000 in its official layout with the lesion masks (the folder
`HAM10000_segmentations_lesion_tschandl`). The generator sees images with a hole. A synthetic image
of a rare class is a train image of the head class (nv) whose lesion is cut out, with one of the
rare class, of a shape that the class has, painted in its place: skin, hair and light are real.

Not run yet. Takes, by count of its arithmetic beside that of `ham10000`, about 70 minutes on two
cores; what it gives is not known. The arms without synthetic images are those of `ham10000`:
balanced accuracy 0.328 +- 0.011 with cross-entropy, 0.545 +- 0.034 with balanced softmax.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import ham10000
from lt_jax import config as config_lib


def get_config() -> ConfigDict:
    """The locked config: `ham10000` with another generator, and the arms that compare it."""
    config: Any = ham10000.get_config()
    with config.unlocked():
        # A label that is dropped alone leaves the surroundings: guidance has them on both sides.
        config.generator.conditions.update(mask=True, inpaint=True, label_dropout=0.1)
        config.synthesize.update(
            method="inpaint",
            source="head",
            given=("label", "mask"),
            min_dose=0.0,
        )
        filled = {"fill_to": 500}
        config.classify.arms = config_lib.arms(
            ce={},
            balanced_softmax={"loss": "balanced_softmax"},
            synthetic_fill_to_500={"controller": "fill_to_head", **filled},
            synthetic_fill_to_500_balanced_softmax={
                "controller": "fill_to_head",
                "loss": "balanced_softmax",
                **filled,
            },
            source_replay_500={"controller": "source_replay", **filled},
        )
    return config
