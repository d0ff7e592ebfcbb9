"""diffusers' UNet2DModel of about as many parameters as our UNet: its training, and DPM-Solver++.

Its blocks are not ours (resampling by convolutions of their own, another embedding), so widths are
chosen to match the count of parameters; `width` says what came out.
"""

from collections.abc import Sequence
from typing import Any

from experiments.throughput.cases import Case, generator_of, random_batch
from experiments.throughput.peers import load, torch_step, torch_unet
from experiments.throughput.peers.torch_step import Mode
from lt_jax.config import Config
from lt_jax.diffusion.generator import Generator
from lt_jax.models import module

torch, diffusers = load("torch"), load("diffusers")

GROUPS = 8  # of its norms: widths are multiples of it
STEPS = 1000  # its process is discrete
MODES = (torch_step.MODES[0], torch_step.MODES[-1])


def make(generator: Generator, widths: Sequence[int]) -> Any:
    """A `UNet2DModel` with the levels, blocks and attention of ours, of these widths."""
    config, (side, _, channels) = generator.config.model, generator.image_shape
    attends = [side >> level in config.attention_resolutions for level in range(len(widths))]
    going_up = config.attention == "everywhere"
    return diffusers.UNet2DModel(
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


def matched(generator: Generator) -> Any:
    """The one whose number of parameters is nearest to that of ours."""
    target = module.count(generator.abstract())

    def widths(tenths: int) -> list[int]:
        scaled = [width * tenths / 20 for width in generator.config.model.channels]
        return [max(GROUPS, GROUPS * round(width / GROUPS)) for width in scaled]

    def distance(tenths: int) -> int:
        with torch.device("meta"):
            return abs(parameters(make(generator, widths(tenths))) - target)

    return make(generator, widths(min(range(10, 31), key=distance)))


def parameters(model: Any) -> int:
    """How many there are."""
    return sum(param.numel() for param in model.parameters())


def trainings(config: Config, classes: int, modes: int = 2) -> list[Case]:
    """Generator training with the loss of ours, in the first `modes` of `MODES`."""
    generator = generator_of(config, classes)
    loss = torch_unet.make_loss(generator)
    batch = random_batch(config, classes, config.generator.batch_size)

    def loss_of(network: Any, images: Any, labels: Any) -> Any:
        def asked(x_t: Any, log_snr: Any, told: Any) -> Any:
            times = torch.sigmoid(-log_snr / 2) * (STEPS - 1)
            row = torch.where(told < 0, classes, told)
            return network(x_t, times, class_labels=row, return_dict=False)[0].float()

        return loss(asked, images, labels)

    return [
        torch_step.training(
            "diffusers", matched(generator), loss_of, batch, config.generator.optimizer, mode,
            config.generator.ema_decay,
        )
        for mode in MODES[:modes]
    ]  # fmt: skip


def sampling(config: Config, classes: int, modes: int = 2) -> list[Case]:
    """DPM-Solver++ (2M) in as many guided steps as ours, to uint8 images on the host.

    In the first `modes` of `MODES`.
    """
    scheduler = diffusers.DPMSolverMultistepScheduler(
        num_train_timesteps=STEPS, algorithm_type="dpmsolver++", solver_order=2,
        prediction_type=_prediction(config),
    )  # fmt: skip
    part = config.synthesize
    return [
        _sampling("diffusers", config, classes, mode, scheduler, part.steps, part.batch_size)
        for mode in MODES[:modes]
    ]


def published(config: Config, classes: int) -> Case:
    """BUSGen's settings: the single-step DPM-Solver of order 3, 50 evaluations, batch 1, float32.

    Each evaluation is guided, hence two of the network.
    """
    scheduler = diffusers.DPMSolverSinglestepScheduler(
        num_train_timesteps=STEPS, algorithm_type="dpmsolver++", solver_order=3,
        lower_order_final=True, prediction_type=_prediction(config),
    )  # fmt: skip
    return _sampling("published", config, classes, Mode("batch 1, float32"), scheduler, 50, 1)


def _prediction(config: Config) -> str:
    return {"v": "v_prediction", "eps": "epsilon", "x0": "sample"}[
        config.generator.process.prediction
    ]


def _sampling(
    name: str, config: Config, classes: int, mode: Mode, scheduler: Any, steps: int, size: int
) -> Case:
    generator = generator_of(config, classes)
    where, scale = torch_step.device(), config.synthesize.guidance_scale
    model = torch_step.placed(matched(generator).eval(), mode)
    network = torch.compile(model) if mode.compiled else model
    side, _, channels = generator.image_shape
    told = torch.arange(size, device=where) % classes
    both = torch.cat([told, torch.full_like(told, classes)])

    @torch.inference_mode()
    def call() -> Any:
        scheduler.set_timesteps(steps, device=where)
        x = torch.randn(size, channels, side, side, device=where)
        for t in scheduler.timesteps:
            with torch_step.autocast(mode):
                out = network(torch.cat([x, x]), t, class_labels=both, return_dict=False)[0]
            conditional, free = out.float().chunk(2)
            x = scheduler.step(free + scale * (conditional - free), t, x).prev_sample
        return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu().numpy()

    seconds = torch_step.first_call(call) if mode.compiled else None
    return Case(
        f"{name}, {mode.name}", call, size, evaluations=2 * steps * size,
        dtype="bfloat16" if mode.amp else "float32", devices=1, compile_seconds=seconds,
        memory=torch_step.memory(), wait=torch_step.wait,
    )  # fmt: skip
