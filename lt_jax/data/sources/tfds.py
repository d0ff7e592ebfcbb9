"""Prepared TensorFlow Datasets, read through `tfds.data_source`: ArrayRecord, no TensorFlow.

`config.data.source = "tfds:<name>"` reads every split of a data set that is already prepared in the
array_record format below `config.data.root` (default: tfds's own folder). Preparing most of them
needs TensorFlow, once, on any machine:

  tfds.builder("cifar10", file_format="array_record", data_dir=DIR).download_and_prepare()
"""

import logging
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8

from lt_jax.config import ConfigError, DataConfig
from lt_jax.data.images import ImageError
from lt_jax.data.sources import Record, SourceError, register

# "name", "name/config", "name:1.2.3": "namespace:name" would fetch a program and run it.
_NAME = re.compile(r"\w+(/[\w.+-]+)?(:\d+\.\d+\.\d+)?")


@register("tfds")
class TFDS:
    """Image and label features are found by their type; ids are `<split>:<index>`.

    The set's own split is kept as attribute `official_split`, which
    `config.data.split.test_where` may name.
    """

    def __init__(self, data: DataConfig) -> None:
        """Raises ConfigError where the set is not prepared, SourceError where it has no labels."""
        self.name = data.source
        self._name = data.source.partition(":")[2]
        if not _NAME.fullmatch(self._name):
            raise ConfigError(
                f"config.data.source: got {data.source!r}; takes tfds:<name>, tfds:<name>/<config> "
                "or tfds:<name>:<version>: sets of other namespaces come with code of their own"
            )
        self._data_dir = data.root or None
        self._splits = _open(self._name, self._data_dir)
        features = next(iter(self._splits.values())).dataset_info.features
        self._image = _feature(features, "Image", self._name)
        self._label = _feature(features, "ClassLabel", self._name)
        self.classes = tuple(features[self._label].names)

    def records(self) -> list[Record]:
        """One record an example of every split; images are not decoded."""
        records = []
        for split, labels in _open(self._name, self._data_dir, skip=self._image).items():
            for index in range(len(labels)):
                label = int(_example(labels, split, index, self.name)[self._label])
                if label < 0:
                    continue  # tfds's mark of an example that is published without its label
                name = f"{split}:{index}"
                known = {"official_split": split}
                records.append(
                    Record(id=name, image=name, label=label, group=name, attributes=known)
                )
        return records

    def decode(self, locator: str) -> UInt8[np.ndarray, "h w c"]:
        """The image of example `<split>:<index>`."""
        split, _, index = locator.partition(":")
        if split not in self._splits or not index.isdecimal():
            raise ImageError(f"{self.name} has no example {locator!r}; takes <split>:<index>")
        if int(index) >= len(self._splits[split]):
            raise ImageError(f"{self.name}: {split} ends before example {index}")
        try:
            example = _example(self._splits[split], split, int(index), self.name)
        except SourceError as error:
            raise ImageError(str(error)) from error
        pixels = np.asarray(example[self._image])
        if pixels.dtype != np.uint8:
            raise ImageError(f"{self.name}: images are {pixels.dtype}; takes uint8")
        return pixels


def _example(examples: Any, split: str, index: int, name: str) -> Mapping[str, Any]:
    """One example; raises SourceError where its file is cut short or its image is no image."""
    try:
        example = examples[index]
        # So where the file ends before its own index.
        if any(value is None for value in example.values()):
            raise ValueError("it is empty")
        return example
    except Exception as error:  # the readers raise bare RuntimeErrors, IndexErrors and others
        raise SourceError(
            f"{name}: example {split}:{index} cannot be read ({error}): a file of the set is cut "
            "short or altered; prepare it anew"
        ) from error


def _open(name: str, data_dir: str | None, skip: str = "") -> dict[str, Any]:
    """The data sources of all splits; `skip` names an image feature to leave undecoded."""
    import tensorflow_datasets as tfds

    # tfds recommends OpenCV in a warning of every process; PIL decodes to the same bits.
    logging.getLogger("absl").addFilter(lambda record: "OpenCV" not in record.getMessage())
    decoders = {skip: tfds.decode.SkipDecoding()} if skip else None
    try:
        splits: Any = tfds.data_source(name, data_dir=data_dir, decoders=decoders, download=False)
        if splits:
            return dict(splits)
        reason = "nothing is prepared there"
    except tfds.core.DatasetNotFoundError:
        reason = "tfds knows no such data set, and none is prepared there"
    except (NotImplementedError, AssertionError, FileNotFoundError) as error:
        reason = f"not prepared as array_record ({str(error).splitlines()[0]})"
    raise ConfigError(
        f"config.data.source: got 'tfds:{name}' with config.data.root {data_dir!r}: {reason}. "
        "Prepare it once, where TensorFlow is installed: "
        f"tfds.builder({name!r}, file_format='array_record', data_dir=...).download_and_prepare()"
    )


def _feature(features: Any, kind: str, name: str) -> str:
    """The name of the one feature of this type; of several, that of the usual name."""
    found = [key for key, feature in features.items() if type(feature).__name__ == kind]
    usual = {"Image": "image", "ClassLabel": "label"}[kind]  # beside it, CIFAR-100 has coarse ones
    if len(found) > 1 and usual in found:
        return usual
    if len(found) != 1:
        raise SourceError(
            f"tfds:{name} has {len(found)} features of type {kind} among {', '.join(features)}; "
            f"takes a set with exactly one, or one called {usual!r}"
        )
    return found[0]
