"""timm's vision transformer, with the sizes of ours, in training."""

from typing import Any

from experiments.throughput.cases import Case, random_batch, shape_of
from experiments.throughput.peers import load, torch_step
from experiments.throughput.peers.torch_step import Mode
from lt_jax.config import Config, ViTConfig
from lt_jax.models.vit import size_of

torch, transformer = load("torch"), load("timm.models.vision_transformer")

MODES = (
    Mode("eager"),
    Mode("AMP", amp=True),
    Mode("compiled", compiled=True),
    Mode("compiled, AMP", compiled=True, amp=True),
)


def make(config: ViTConfig, side: int, channels: int, classes: int) -> Any:
    """A `timm` network of as many parameters as ours with a token and learned positions."""
    size = size_of(config)
    return transformer.VisionTransformer(
        img_size=side, patch_size=config.patch_size, in_chans=channels, num_classes=classes,
        embed_dim=size.width, depth=size.depth, num_heads=size.heads,
        mlp_ratio=size.mlp / size.width, proj_drop_rate=config.dropout,
        drop_path_rate=config.drop_path,
    )  # fmt: skip


def cases(config: Config, classes: int, modes: int = len(MODES)) -> list[Case]:
    """Classifier training in the first `modes` of `MODES`."""
    part = config.classify
    side, _, channels = shape_of(config)
    batch = random_batch(config, classes, part.batch_size)

    def loss_of(network: Any, images: Any, labels: Any) -> Any:
        logits = network(torch_step.augmented(images, part.augment))
        return torch.nn.functional.cross_entropy(logits.float(), labels)

    return [
        torch_step.training(
            "timm", make(part.model.vit, side, channels, classes), loss_of, batch,
            part.optimizer, mode,
        )
        for mode in MODES[:modes]
    ]  # fmt: skip
