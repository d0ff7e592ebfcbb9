"""timm's vision transformer, with the sizes of ours, in training."""

from typing import Any

from experiments.throughput.cases import Case, random_batch, shape_of
from experiments.throughput.peers import Mode, load, torch_step
from lt_jax.config import Config, ViTConfig
from lt_jax.models.vit import size_of

torch, transformer = load("torch"), load("timm.models.vision_transformer")


def make(config: ViTConfig, side: int, channels: int, classes: int) -> Any:
    """A `timm` network of as many parameters as ours with a token and learned positions."""
    size = size_of(config)
    return transformer.VisionTransformer(
        img_size=side, patch_size=config.patch_size, in_chans=channels, num_classes=classes,
        embed_dim=size.width, depth=size.depth, num_heads=size.heads,
        mlp_ratio=size.mlp / size.width, proj_drop_rate=config.dropout,
        drop_path_rate=config.drop_path,
    )  # fmt: skip


def case(config: Config, classes: int, mode: Mode) -> Case:
    """Classifier training."""
    part = config.classify
    side, _, channels = shape_of(config)

    def loss_of(network: Any, images: Any, labels: Any) -> Any:
        logits = network(torch_step.augmented(images, part.augment))
        return torch.nn.functional.cross_entropy(logits.float(), labels)

    return torch_step.training(
        make(part.model.vit, side, channels, classes), loss_of,
        random_batch(config, classes, part.batch_size), part.optimizer, mode,
    )  # fmt: skip
