"""diffusers' UNet2DModel of about as many parameters as our UNet: its training, and DPM-Solver++.

Its blocks are not ours (resampling by convolutions of their own, another embedding), so widths are
chosen to match the count of parameters: its arithmetic is another, and counted by PyTorch.
"""

import functools
from collections.abc import Sequence
from typing import Any

from experiments.throughput.cases import Case, generator_of, random_batch
from experiments.throughput.peers import Mode, load, torch_step, torch_unet
from lt_jax.config import Config
from lt_jax.diffusion.generator import Generator
from lt_jax.models import module

torch, diffusers = load("torch"), load("diffusers")
unet_2d = load("diffusers.models.unets.unet_2d")  # which the library loads when it is asked for
flop_counter = load("torch.utils.flop_counter")

GROUPS = 8  # of its norms: widths are multiples of it
STEPS = 1000  # its process is discrete


def make(generator: Generator, widths: Sequence[int]) -> Any:
    """A `UNet2DModel` with the levels, blocks and attention of ours, of these widths."""
    config, (side, _, channels) = generator.config.model, generator.image_shape
    attends = [side >> level in config.attention_resolutions for level in range(len(widths))]
    going_up = config.attention == "everywhere"
    return unet_2d.UNet2DModel(
        sample_size=side, in_channels=channels, out_channels=channels,
        layers_per_block=config.blocks, block_out_channels=tuple(widths),
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        up_block_types=tuple(
            "AttnUpBlock2D" if a and going_up else "UpBlock2D" for a in reversed(attends)
        ),
        norm_num_groups=GROUPS, attention_head_dim=min(config.head_channels, *widths),
        dropout=config.dropout,
        num_class_embeds=generator.vocabulary.num_classes + 1,
    )  # fmt: skip


@functools.cache
def matched_widths(generator: Generator) -> tuple[int, ...]:
    """Those with which the number of parameters is nearest to that of ours."""
    target = module.count(generator.abstract())

    def widths(tenths: int) -> tuple[int, ...]:
        scaled = [width * tenths / 20 for width in generator.config.model.channels]
        return tuple(max(GROUPS, GROUPS * round(width / GROUPS)) for width in scaled)

    def distance(tenths: int) -> int:
        with torch.device("meta"):
            return abs(parameters(make(generator, widths(tenths))) - target)

    return widths(min(range(10, 31), key=distance))


def matched(generator: Generator) -> Any:
    """The one whose number of parameters is nearest to that of ours."""
    return make(generator, matched_widths(generator))


@functools.cache
def forward_flops(generator: Generator) -> int:
    """Of `matched` and one image: products and convolutions, as PyTorch counts them."""
    side, _, channels = generator.image_shape
    with torch.device("meta"), flop_counter.FlopCounterMode(display=False) as counter:
        label = torch.zeros(1, dtype=torch.long)
        matched(generator)(torch.zeros(1, channels, side, side), torch.zeros(1), class_labels=label)
    return counter.get_total_flops()


def parameters(model: Any) -> int:
    """How many there are."""
    return sum(param.numel() for param in model.parameters())


def training(config: Config, classes: int, mode: Mode) -> Case:
    """Generator training with the loss of ours."""
    generator, part = generator_of(config, classes), config.generator
    loss = torch_unet.make_loss(generator)

    def loss_of(network: Any, images: Any, labels: Any) -> Any:
        def asked(x_t: Any, log_snr: Any, told: Any) -> Any:
            times = torch.sigmoid(-log_snr / 2) * (STEPS - 1)
            row = torch.where(told < 0, classes, told)
            return network(x_t, times, class_labels=row, return_dict=False)[0].float()

        return loss(asked, images, labels)

    return torch_step.training(
        matched(generator), loss_of, random_batch(config, classes, part.batch_size),
        part.optimizer, mode, part.ema_decay,
        # A backward pass has a product for the weights and one for what goes in.
        flops=3.0 * part.batch_size * forward_flops(generator),
    )  # fmt: skip


def sampling(config: Config, classes: int, mode: Mode) -> Case:
    """DPM-Solver++ (2M) in as many guided steps as ours, to uint8 images on the host."""
    scheduler = diffusers.DPMSolverMultistepScheduler(
        num_train_timesteps=STEPS, algorithm_type="dpmsolver++", solver_order=2,
        prediction_type=_prediction(config),
    )  # fmt: skip
    part = config.synthesize
    return _sampling(config, classes, mode, scheduler, part.steps, part.batch_size)


def published(config: Config, classes: int, mode: Mode) -> Case:
    """BUSGen's settings: the single-step DPM-Solver of order 3, 50 evaluations, batch 1.

    Each evaluation is guided, hence two of the network.
    """
    scheduler = diffusers.DPMSolverSinglestepScheduler(
        num_train_timesteps=STEPS, algorithm_type="dpmsolver++", solver_order=3,
        lower_order_final=True, prediction_type=_prediction(config),
    )  # fmt: skip
    return _sampling(config, classes, mode, scheduler, 50, 1)


def _prediction(config: Config) -> str:
    return {"v": "v_prediction", "eps": "epsilon", "x0": "sample"}[
        config.generator.process.prediction
    ]


def _sampling(
    config: Config, classes: int, mode: Mode, scheduler: Any, steps: int, size: int
) -> Case:
    generator = generator_of(config, classes)
    where, scale = torch_step.device(), config.synthesize.guidance_scale
    before = torch_step.allocated()
    network = torch_step.compiled(torch_step.placed(matched(generator).eval(), mode), mode)
    side, _, channels = generator.image_shape
    told = torch.arange(size, device=where) % classes
    both = torch.cat([told, torch.full_like(told, classes)])

    @torch.inference_mode()
    def call() -> Any:
        scheduler.set_timesteps(steps, device=where)
        x = torch.randn(size, channels, side, side, device=where)
        for t in scheduler.timesteps:
            with torch_step.running(mode):
                out = network(torch.cat([x, x]), t, class_labels=both, return_dict=False)[0]
            conditional, free = out.float().chunk(2)
            x = scheduler.step(free + scale * (conditional - free), t, x).prev_sample
        return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu().numpy()

    seconds, memory = torch_step.first_calls(call, before)
    return Case(
        mode.name, call, size, evaluations=2 * steps * size,
        flops=2.0 * steps * size * forward_flops(generator), dtype=mode.dtype, devices=1,
        compile_seconds=seconds if mode.compiled else None, memory=memory, wait=torch_step.wait,
    )  # fmt: skip
