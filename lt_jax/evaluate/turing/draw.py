"""Which images a study shows: as many real as synthetic ones of each class, in random order.

Real images are of one split of the manifest (val by default, which no generator and no scorer has
been fitted to), synthetic ones are those that the pool's selection accepted.

What would tell without looking is left out: a second image of one group (two views of one lesion
are both real; two images painted into one photograph are both synthetic), and an image that is a
copy of one already drawn, by its pixels or as a near-duplicate (`data.duplicates`, at the distance
of the manifest's protocol; where that scan was off, copies alone).

The draw is seeded with the seed and with hashes of the pool's table and of the manifest: nobody who
has the page, this program and a guess of the seed can repeat it without the images.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from lt_jax import config as config_lib
from lt_jax.data import duplicates, prepare
from lt_jax.data.images import ArrayImages, Images
from lt_jax.data.manifest import SplitManifest
from lt_jax.data.pool import PoolReader, open_pool
from lt_jax.data.pool.schema import DESCRIPTION, TABLE
from lt_jax.evaluate.turing.study import StudyError
from lt_jax.runtime import artifacts

_NEAREST = 0.01  # of near-duplicates, where the manifest does not say


@dataclasses.dataclass(frozen=True)
class Inputs:
    """A pool, the manifest that it belongs to, and the manifest's images.

    Attributes:
      pool_sha256: of the pool's table.
      log: of the openings of the test split.
    """

    pool: PoolReader
    pool_sha256: str
    manifest: SplitManifest
    images: Images
    log: pathlib.Path


@dataclasses.dataclass(frozen=True)
class ClassCount:
    """Images of a class: of each kind at hand, and shown of each kind."""

    name: str
    real: int
    synthetic: int
    shown: int


@dataclasses.dataclass(frozen=True, eq=False)
class Drawn:
    """The images of a study, in the order in which they are shown.

    Attributes:
      images: uint8 [n, h, w, c].
      synthetic: the answers [n].
      labels: classes [n].
      sources: manifest ids of real images, pool indices of synthetic ones [n].
      counts: one a class.
      left_out: candidates passed over, by reason.
    """

    images: UInt8[np.ndarray, "n h w c"]
    synthetic: tuple[bool, ...]
    labels: tuple[int, ...]
    sources: tuple[str, ...]
    counts: tuple[ClassCount, ...]
    left_out: Mapping[str, int]


def open_inputs(pool: pathlib.Path, real: pathlib.Path | None = None) -> Inputs:
    """Opens a pool and the images of its manifest.

    Args:
      pool: a finished `synthesize` folder, or a workdir that holds one.
      real: a finished `prepare` folder, or a workdir that holds one; None: the pool's own, found
        beside it or by the key that its artifact names.

    Raises:
      PoolError: no finished pool.
      ForeignPoolError: the pool was generated from another manifest.
      ManifestError: no readable manifest.
      StudyError: no `prepare` folder was found, or its images have another shape than the pool's.
    """
    folder = pool / "synthesize" if (pool / "synthesize" / DESCRIPTION).is_file() else pool
    opened = open_pool(folder)
    place = _prepared(folder, real)
    accepted = np.flatnonzero(opened.columns["verdict"] == "accepted")
    if not len(accepted):
        raise StudyError(f"{folder}: the pool has no accepted images; there is nothing to show")
    shape = opened[accepted[:1]].shape[1:]
    manifest, images = prepare.load(place, _data_config(place))
    pool_sha256 = hashlib.sha256((folder / TABLE).read_bytes()).hexdigest()
    reader = PoolReader(folder, manifest.sha256)
    theirs = images[np.array([0])].shape[1:]
    if theirs != shape:
        raise StudyError(
            f"{folder}: its images are {shape}, those of {place} are {theirs} (height, width, "
            "channels); readers would tell them by that"
        )
    log = place.absolute().parent / "test_openings.jsonl"
    return Inputs(reader, pool_sha256, manifest, images, log)


def _prepared(folder: pathlib.Path, real: pathlib.Path | None) -> pathlib.Path:
    """The folder of the real images."""
    if real is not None:
        inner = real / "prepare"
        return inner if (inner / "manifest.json").is_file() else real
    found = [folder.absolute().parent / "prepare"]
    if (mark := folder / artifacts.MARK).is_file():  # in a cache, artifacts lie side by side
        key = artifacts.describe(mark.parent)["inputs"].get("prepare", "")
        found.append(folder.resolve().parent / f"prepare-{key[:16]}")
    for place in found:
        if (place / "manifest.json").is_file():
            return place
    raise StudyError(
        f"{folder}: there is no finished `prepare` beside it; give the folder of the real images "
        "with --real"
    )


def _data_config(folder: pathlib.Path) -> config_lib.DataConfig:
    """What the folder was prepared with; where that is not told, what its images look like.

    Raises StudyError where there are neither.
    """
    mark, array = folder / artifacts.MARK, folder / "images.npy"
    if mark.is_file():
        told: Mapping[str, Any] = artifacts.describe(folder)["config"]
        fields = {field.name for field in dataclasses.fields(config_lib.DataConfig)}
        known = {name: value for name, value in told.items() if name in fields}
        return config_lib.build(config_lib.DataConfig, known, "config.data")
    if array.is_file():
        _, side, _, channels = ArrayImages(array).shape
        return config_lib.DataConfig(image_size=side, channels=channels)
    raise StudyError(
        f"{folder}: neither {artifacts.MARK} nor {array.name} is there; give the folder of a "
        "finished stage with --real"
    )


def draw(
    inputs: Inputs,
    n: int,
    seed: int = 0,
    split: str = "val",
    progress: Callable[[int], None] = lambda done: None,
) -> Drawn:
    """Draws the images of a study.

    Classes get equal shares; what a class lacks, of either kind, goes to the others.

    Args:
      inputs: see `open_inputs`.
      n: images in all, an even number.
      seed: of the draw.
      split: of the real images. "test" is opened, and the opening logged, before an image is read.
      progress: is told how many images are drawn.

    Raises:
      StudyError: n is odd or below 2, or there are too few images.
      ManifestError: no such split.
    """
    if n < 2 or n % 2:
        raise StudyError(f"--n: got {n}; takes an even number: half real, half synthetic")
    rng = _generator(inputs, n, seed, split)
    lots = _lots(inputs, split, rng)
    shares = _fill(lots, n // 2, progress)
    counts = tuple(
        ClassCount(name, len(real.candidates), len(synthetic.candidates), int(share))
        for name, (real, synthetic), share in zip(
            inputs.manifest.classes, lots, shares, strict=True
        )
    )
    if shares.sum() < n // 2:
        told = "; ".join(
            f"{c.name}: {c.real} real, {c.synthetic} synthetic, {c.shown} of each" for c in counts
        )
        raise StudyError(
            f"--n: got {n}; there are {2 * int(shares.sum())} images at most (of {split} and of "
            f"the pool, one a group, without copies: {told}); ask for fewer, or give another "
            "--split or a larger pool"
        )
    picked = [
        (pick, kind == 1, label)
        for label, (pair, share) in enumerate(zip(lots, shares, strict=True))
        for kind, lot in enumerate(pair)
        for pick in lot.picked[:share]
    ]
    order = rng.permutation(n)
    return Drawn(
        images=np.stack([picked[i][0].image for i in order]),
        synthetic=tuple(picked[i][1] for i in order),
        labels=tuple(picked[i][2] for i in order),
        sources=tuple(picked[i][0].source for i in order),
        counts=counts,
        left_out=lots[0][0].seen.left_out,
    )


def shares(available: Int[np.ndarray, "k"], total: int) -> Int[np.ndarray, "k"]:
    """Deals `total` out to k classes as evenly as what is available of each allows.

    Earlier classes get what does not divide. The sum is below `total` only where all of
    `available` is dealt.
    """
    dealt = np.zeros_like(available)
    while (left := total - int(dealt.sum())) > 0 and (dealt < available).any():
        short = np.flatnonzero(dealt < available)[:left]
        each = max(left // len(short), 1)
        dealt[short] += np.minimum(available[short] - dealt[short], each)
    return dealt


def _generator(inputs: Inputs, n: int, seed: int, split: str) -> np.random.Generator:
    told = json.dumps([inputs.pool_sha256, inputs.manifest.sha256, n, seed, split])
    return np.random.default_rng(list(hashlib.sha256(told.encode()).digest()))


class _Seen:
    """What may not be shown again."""

    def __init__(self, distance: float):
        self._distance = distance
        self._pixels: set[bytes] = set()
        self._groups: set[str] = set()
        self._thumbnails: list[Float[np.ndarray, "d"]] = []
        self.left_out = {"of a group that is shown": 0, "copies": 0}

    def group(self, name: str) -> bool:
        """Whether an image of this group is drawn; "" is no group."""
        again = bool(name) and name in self._groups
        self.left_out["of a group that is shown"] += again
        return again

    def add(self, image: UInt8[np.ndarray, "h w c"], group: str) -> bool:
        """Adds an image, unless it is a copy of one that is drawn; returns whether it was added."""
        pixels = image.tobytes()
        small = duplicates.thumbnail(image).ravel().astype(float)
        small = small - small.mean()
        norm = np.linalg.norm(small)
        flat = norm <= duplicates.MIN_CONTRAST * np.sqrt(small.size)  # these match nothing
        unit = np.zeros_like(small) if flat else small / norm
        near = bool(self._thumbnails) and float(
            np.max(np.stack(self._thumbnails) @ unit)
        ) >= 1 - max(self._distance, 1e-6)
        if near or pixels in self._pixels:
            self.left_out["copies"] += 1
            return False
        self._pixels.add(pixels)
        self._thumbnails.append(unit)
        if group:
            self._groups.add(group)
        return True


@dataclasses.dataclass(frozen=True, eq=False)
class _Pick:
    image: UInt8[np.ndarray, "h w c"]
    source: str


@dataclasses.dataclass(eq=False)
class _Lot:
    """Images of one class and kind: candidates (rows) in random order, those drawn from them."""

    candidates: Int[np.ndarray, "m"]
    read: Callable[[int], _Pick]
    group: Callable[[int], str]
    seen: _Seen
    picked: list[_Pick] = dataclasses.field(default_factory=list)
    tried: int = 0

    def draw(self, number: int) -> int:
        """Draws until `number` images are picked; returns how many there are of them."""
        while len(self.picked) < number and self.tried < len(self.candidates):
            row = int(self.candidates[self.tried])
            self.tried += 1
            group = self.group(row)
            if self.seen.group(group):
                continue
            pick = self.read(row)
            if self.seen.add(pick.image, group):
                self.picked.append(pick)
        return min(len(self.picked), number)


def _lots(inputs: Inputs, split: str, rng: np.random.Generator) -> list[tuple[_Lot, _Lot]]:
    """Real and synthetic images of each class."""
    manifest, pool = inputs.manifest, inputs.pool
    rows = manifest.rows(split)
    if split == "test":
        reason = f"visual Turing test with pool {inputs.pool_sha256[:12]}"
        _, labels = manifest.open_test(inputs.log, reason)
    else:
        labels = manifest.labels[rows]
    row_of = {name: row for row, name in enumerate(manifest.ids)}
    told, index = pool.table["conditions"], pool.columns["index"]

    def group_of_source(row: int) -> str:
        """The group of the real image that a synthetic one was made from."""
        source = json.loads(told[row].as_py()).get("source")
        return manifest.groups[row_of[source]] if source in row_of else ""

    def real(row: int) -> _Pick:
        return _Pick(inputs.images[np.array([row])][0], manifest.ids[row])

    def synthetic(row: int) -> _Pick:
        return _Pick(pool[np.array([row])][0], str(index[row]))

    scan = manifest.protocol.get("near_duplicates", {})
    distance = 0.0 if scan.get("mode") == "off" else float(scan.get("distance", _NEAREST))
    seen = _Seen(distance)
    return [
        (
            _Lot(rng.permutation(rows[labels == k]), real, manifest.groups.__getitem__, seen),
            _Lot(rng.permutation(pool.rows(k)), synthetic, group_of_source, seen),
        )
        for k in range(len(manifest.classes))
    ]


def _fill(
    lots: Sequence[tuple[_Lot, _Lot]], total: int, progress: Callable[[int], None]
) -> Int[np.ndarray, "k"]:
    """Draws equal numbers of both kinds a class, `total` pairs where there are as many."""
    limit = np.array([min(len(lot.candidates) for lot in pair) for pair in lots])
    while True:
        wanted = shares(limit, total)
        got = wanted.copy()
        for kind in (1, 0):  # a source that is taken has fewer stand-ins among synthetic images
            for k, pair in enumerate(lots):
                got[k] = min(got[k], pair[kind].draw(int(wanted[k])))
            progress(int(got.sum()) * (2 - kind))
        short = got < wanted
        if not short.any():
            return got
        limit[short] = got[short]
