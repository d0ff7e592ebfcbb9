"""What the stages of one run share: config, artifacts, data, mesh."""

import dataclasses
import functools
import pathlib
import weakref
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lt_jax.classify import predict
from lt_jax.config import ClassifierConfig, Config
from lt_jax.data import prepare
from lt_jax.data.images import Images, Withheld
from lt_jax.data.manifest import SplitManifest
from lt_jax.diffusion import annotations
from lt_jax.diffusion.generator import Generator
from lt_jax.models import classifier, module
from lt_jax.runtime import arrays, checkpoint
from lt_jax.runtime import mesh as mesh_lib
from lt_jax.runtime.artifacts import Spec, Store
from lt_jax.runtime.job import Job
from lt_jax.selection.ood import Evidence
from lt_jax.shapes import Float, Params


@dataclasses.dataclass(frozen=True)
class Context:
    """One run, as its stages see it.

    Attributes:
      specs: by stage name.
      command: for the report.
      decoded: images of the pool that trainings of the moment draw from, by pool and rows: those
        of a population share one array.
    """

    config: Config
    specs: dict[str, Spec]
    store: Store
    workdir: pathlib.Path
    mesh: Mesh
    command: str
    decoded: weakref.WeakValueDictionary[tuple[str, bytes], Any] = dataclasses.field(
        default_factory=weakref.WeakValueDictionary
    )

    def by_itself(self) -> "Context":
        """The run on the devices of this process alone."""
        if not self.mesh.is_multi_process:
            return self
        return dataclasses.replace(self, mesh=mesh_lib.make_mesh(fsdp=1))

    def job(self, folder: pathlib.Path, **tags: Any) -> Job:
        """A training of this run in `folder`."""
        return Job(folder, self.mesh, self.config.runtime, tags)

    def folder(self, stage: str) -> pathlib.Path:
        """The artifact of a stage, intact where it is finished (see `Store.intact`)."""
        return self.store.intact(self.specs[stage])

    @functools.cached_property
    def data(self) -> tuple[SplitManifest, Images]:
        """The manifest, test labels, boxes and masks left out, and its images."""
        manifest, images = prepare.load(self.folder("prepare"), self.config.data)
        return manifest.without_test_labels(), images

    @functools.cached_property
    def annotations(self) -> annotations.Annotations:
        """What the generator is told of the images; of test images no lesion."""
        masks = prepare.load_masks(self.folder("prepare"))
        if masks is not None:
            masks = Withheld(masks, np.array(self.data[0].splits) != "test")
        conditions = self.config.generator.conditions
        return annotations.annotate(self.data[0], masks, conditions, self.image_shape[-1])

    @property
    def generator(self) -> Generator:
        """The generator's network, for the conditions that this data set has."""
        return Generator(self.config.generator, self.annotations.vocabulary, self.image_shape)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        size = self.config.data.image_size
        return size, size, self.config.data.channels

    @functools.cached_property
    def train_rows(self) -> list[np.ndarray]:
        """Train rows [n_k] of each class."""
        manifest, _ = self.data
        rows = manifest.rows("train")
        labels = manifest.labels[rows]
        return [rows[labels == k] for k in range(len(manifest.classes))]

    def evidence(self, split: str) -> Evidence | None:
        """What the extractor says of a split's real images, by its rows; None where it is empty."""
        manifest, _ = self.data
        held = arrays.load(self.folder("extractor") / "features.npz")
        if f"{split}_rows" not in held:
            return None
        return Evidence(
            features=held[f"{split}_features"],
            logits=held[f"{split}_logits"],
            labels=manifest.labels[held[f"{split}_rows"]],
            errors=None,
        )

    def features(
        self, extractor: Params, images: Images, rows: np.ndarray
    ) -> Float[np.ndarray, "m d"]:
        """The extractor's features of `images[rows]`, by its parameters."""
        config = self.config.extractor
        forward = predict.make_forward(config.model, len(self.data[0].classes), self.mesh)
        if not len(rows):
            return np.zeros((0, 1), np.float32)
        return predict.predict(forward, extractor, images, rows, config.batch_size)[1]

    def classifier_params(self, stage: str, model: ClassifierConfig) -> Params:
        """The parameters of the classifier that a finished stage has trained."""
        network = classifier.make(model, len(self.data[0].classes))
        image = jax.ShapeDtypeStruct((1, *self.image_shape), np.float32)
        shapes = module.abstract(network, image, train=False)
        target = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
        return checkpoint.load_tree(self.folder(stage) / "params", target)
