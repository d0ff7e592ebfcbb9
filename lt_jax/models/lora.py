"""Low-rank adaptation of a trained network: what is trained, how it joins the base, how it is kept.

LoRA (Hu et al. 2021, arXiv:2106.09685, section 4.1) leaves a trained kernel W as it is and trains
the two factors of an update of rank r:

  W' = W + (alpha / r) A B,    A: [m r],  B: [r o],  A B = 0 at the start                  (1)

Here W is any array of two axes or more, read as the matrix [m o] whose columns are its last axis:

  dense kernel [i o]               m = i
  convolution kernel [kh kw i o]   m = kh kw i, so that, by linearity,
      conv(x, W') = conv(x, W) + (alpha / r) conv_1x1(conv(x, A), B)                       (2)
  embedding table [n d]            m = n, a row of A for each entry

(2), a kh x kw convolution to r channels and a 1 x 1 one from them, is LyCORIS's LoCon (Yeh et al.
2023, arXiv:2309.14859); loralib's `Conv2d` factors the kernel into [kh i, kw o]
instead, which is no pair of convolutions. Kernels start with A ~ N(0, 1 / m) and B = 0; embedding
tables the other way round, A = 0 and B ~ N(0, 1), as loralib's `Embedding` does: an entry that is
never looked up then keeps the base's row exactly, where a random A would move it with the rest.

Adapters are plain pytrees `{path: {"a": A, "b": B}}`, a path being a leaf's keys joined by "/".
A network of another vocabulary (more classes, say) has leaves that the base has no value for:
those are new, and trained in full. `Adapter` puts both together for a train step.
"""

import dataclasses
import fnmatch
import json
import pathlib
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from lt_jax.config import AdaptConfig, ConfigError
from lt_jax.errors import UserError
from lt_jax.models import module
from lt_jax.runtime import checkpoint, distributed, files
from lt_jax.shapes import Array, Params, PRNGKey, PyTree

Flat = Mapping[str, Any]  # leaves by path
Factors = Mapping[str, Mapping[str, Any]]  # {path: {"a": [m r], "b": [r o]}}

_VERSION = 1  # of the folder that `save` writes
_SHOWN = 8  # paths that an error lists


class AdapterError(UserError, ValueError):
    """An adapter that does not fit the base it is put on."""


def flatten(params: PyTree) -> dict[str, Any]:
    """The leaves of a tree of arrays (or of their shapes) by path."""
    leaves = jax.tree.leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def init(key: PRNGKey, params: PyTree, targets: tuple[str, ...], rank: int) -> dict[str, Any]:
    """An adapter that changes nothing yet. Equation (1).

    Args:
      key: decides the factors; a leaf's depend on `key`, `rank` and its path alone.
      params: the network's, or their shapes.
      targets: patterns of paths (`fnmatch`; "*" also spans "/"). Leaves of one axis, as biases,
        have no low-rank form and are passed over.
      rank: r. Of a leaf whose matrix has fewer rows or columns it is their number.

    Raises:
      ConfigError: no pattern, or one that no leaf of two axes or more matches.
    """
    matrices = {path: leaf for path, leaf in flatten(params).items() if len(leaf.shape) > 1}
    matched: set[str] = set()
    for pattern in targets or ("",):
        found = [path for path in matrices if fnmatch.fnmatchcase(path, pattern)]
        if not found:
            raise ConfigError(
                f"targets: {pattern!r} matches no kernel of the network; its kernels are "
                f"{_some(matrices)}"
            )
        matched |= set(found)
    chosen = {path: matrices[path] for path in sorted(matched)}
    # Under one jit, and in one draw: kernel by kernel, a UNet's take ten seconds to compile.
    return jax.jit(lambda key: _factors(key, chosen, rank))(key)


def _factors(key: PRNGKey, leaves: Flat, rank: int) -> dict[str, dict[str, Array]]:
    """Each leaf's A and B. Row i of the one that is not zero has the key (path, i)."""
    tables = {path: path.split("/")[-1] == "embedding" for path in leaves}  # Flax's name for one
    lengths = [_matrix_shape(leaf)[tables[path]] for path, leaf in leaves.items()]
    names = np.repeat(np.array([zlib.crc32(path.encode()) for path in leaves], np.uint32), lengths)
    rows = np.concatenate([np.arange(length) for length in lengths])

    def draw(name: Array, row: Array) -> Array:
        of_row = jax.random.fold_in(jax.random.fold_in(key, name), row)
        return jax.random.normal(of_row, (rank,))

    drawn = jnp.split(
        jax.vmap(draw)(jnp.asarray(names), jnp.asarray(rows)), np.cumsum(lengths)[:-1]
    )
    factors = {}
    for (path, leaf), normal in zip(leaves.items(), drawn, strict=True):
        m, o = _matrix_shape(leaf)
        normal = normal[:, : min(m, o)].astype(leaf.dtype)
        r = normal.shape[1]
        if tables[path]:
            factors[path] = {"a": jnp.zeros((m, r), leaf.dtype), "b": normal.T}
        else:
            factors[path] = {"a": normal * m**-0.5, "b": jnp.zeros((r, o), leaf.dtype)}
    return factors


def _matrix_shape(leaf: Any) -> tuple[int, int]:
    return int(np.prod(leaf.shape[:-1])), leaf.shape[-1]


def merge(base: Params, lora: Factors, scale: float) -> Params:
    """The adapted parameters, a tree like `base`. Equation (1).

    Called inside a loss it lets gradients through to the adapter alone; called once after
    training it gives parameters that stand by themselves.

    Args:
      base: the trained parameters.
      lora: the adapter.
      scale: alpha / r. Leaves whose rank was capped share it.

    Raises:
      AdapterError: the adapter has a path that `base` lacks, or factors of another kernel.
    """
    if missing := set(lora) - set(flatten(base)):
        raise AdapterError(f"the adapter is of another network: the base has no {_some(missing)}")

    def add(path: Any, leaf: Any) -> Any:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        leaf = jax.lax.stop_gradient(leaf)
        if name not in lora:
            return leaf
        a, b = lora[name]["a"], lora[name]["b"]
        if (a.shape[0], b.shape[1]) != _matrix_shape(leaf):
            raise AdapterError(
                f"the adapter is of another network: its factors of {name} make a matrix of "
                f"{a.shape[0]}x{b.shape[1]}, but the base's array is {leaf.shape}"
            )
        # In full precision: an accelerator's default would round what an export adds.
        update = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
        return leaf + (scale * update).reshape(leaf.shape).astype(leaf.dtype)

    return jax.tree.map_with_path(add, base)


def stack(adapters: Sequence[PyTree]) -> PyTree:
    """Several adapters of one form as one, each array with them along a new first axis.

    `jax.vmap(lambda lora: forward(merge(base, lora, scale), x))(stack(adapters))` runs them all
    over one base. Trainable parts of an `Adapter` stack as well.

    Raises:
      AdapterError: they differ in paths, ranks or dtypes.
    """
    if len({checkpoint.layout(adapter) for adapter in adapters}) != 1:
        raise AdapterError(
            f"{len(adapters)} adapters do not stack: they differ in their targets, ranks or types, "
            "or there are none; adapt with the same targets and rank"
        )
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *adapters)


def split_base(base: PyTree, fresh: PyTree) -> tuple[dict[str, Any], dict[str, Any]]:
    """Which parameters of a network come from the base, and which are new.

    A leaf of the network comes from the base where that has one of the same path, shape and
    dtype. Any other (a class table of another length, the first kernel of a network with another
    number of input channels, the embedding of a condition that the base was not trained with) is
    new as a whole. What only the base has is left out.

    Args:
      base: the trained parameters.
      fresh: freshly made parameters of the network, or their shapes.

    Returns:
      (frozen, trained): leaves of `base` and leaves of `fresh`, by path; together they are those
      of `fresh`.

    Raises:
      AdapterError: less than half of the network's parameters would come from the base, as with a
        base of another architecture, where adapting would be training from scratch.
    """
    have, need = flatten(base), flatten(fresh)

    def same(path: str) -> bool:
        found, wanted = have.get(path), need[path]
        return found is not None and (found.shape, found.dtype) == (wanted.shape, wanted.dtype)

    frozen = {path: have[path] for path in need if same(path)}
    trained = {path: leaf for path, leaf in need.items() if path not in frozen}
    shared, total = module.count(frozen), module.count(need)
    if 2 * shared < total:
        raise AdapterError(
            f"the base gives {shared:,} of the network's {total:,} parameters, having none of the "
            f"right shape for {_some(trained)}; give config.generator.model the base's settings"
        )
    return frozen, trained


@dataclasses.dataclass(frozen=True)
class Adapter:
    """What of a network is trained over a base, and how the parts are joined.

    Attributes:
      method: "lora": factors at `targets`, and new leaves in full. "full": every leaf, starting
        from the base. "none": new leaves alone, so nothing where base and network agree.
      rank, alpha, targets: of "lora"; see `init` and equation (1).
    """

    method: Literal["lora", "full", "none"] = "lora"
    rank: int = 8
    alpha: float = 8.0
    targets: tuple[str, ...] = ("*/kernel",)

    def init(self, key: PRNGKey, base: PyTree, fresh: PyTree) -> tuple[dict, dict]:
        """Splits a network into what stays and what is trained.

        Args:
          key: decides the factors.
          base: the trained parameters.
          fresh: freshly made parameters of the network, a nested dict.

        Returns:
          (frozen, trainable). `frozen` is {path: leaf} of `base`. `trainable` is
          `{"lora": factors, "full": {path: leaf}}`, of its own buffers, which may be donated;
          leaves that are new have no factors, whatever `targets` says.

        Raises:
          AdapterError, ConfigError: see `split_base` and `init`.
        """
        frozen, trained = split_base(base, fresh)
        if self.method == "full":
            frozen, trained = {}, {**frozen, **trained}
        lora = init(key, fresh, self.targets, self.rank) if self.method == "lora" else {}
        return frozen, {
            "lora": {path: factors for path, factors in lora.items() if path in frozen},
            "full": jax.tree.map(jnp.array, trained),  # `array` copies
        }

    def merge(self, frozen: Flat, trainable: Mapping[str, Any]) -> dict[str, Any]:
        """The network's parameters, a nested dict. Gradients reach `trainable` alone."""
        adapted: Any = merge(frozen, trainable["lora"], self.alpha / self.rank)
        return traverse_util.unflatten_dict({**adapted, **trainable["full"]}, sep="/")

    def count(self, base: PyTree, fresh: PyTree) -> int:
        """How many numbers are trained; the arguments of `init`, or their shapes."""
        _, trainable = jax.eval_shape(self.init, jax.random.key(0), base, fresh)
        return module.count(trainable)


def make(config: AdaptConfig) -> Adapter:
    """The adapter that a config describes."""
    return Adapter(config.method, config.rank, config.alpha, config.targets)  # type: ignore[arg-type]


def save(folder: pathlib.Path, adapter: Adapter, frozen: Flat, trainable: PyTree) -> None:
    """Writes what was trained, without the base but with its sha256, replacing what was there.

    The hash is over names, types, shapes and bytes of the base's parameters that are in use.

    Args:
      folder: gets `weights` and, last, `adapter.json`.
      adapter: what `trainable` was made by.
      frozen: see `Adapter.init`.
      trainable: trained, or its average.

    Raises:
      DiskFullError: no space left.
    """
    folder.mkdir(parents=True, exist_ok=True)
    distributed.on_first(lambda: (folder / "adapter.json").unlink(missing_ok=True))
    if jax.tree.leaves(trainable):
        checkpoint.save_tree(folder / "weights", trainable)
    description = {
        "version": _VERSION,
        "adapter": dataclasses.asdict(adapter),
        "base": checkpoint.digest(dict(frozen)),
        "frozen": sorted(frozen),
        "trainable": jax.tree.map(lambda leaf: [list(leaf.shape), str(leaf.dtype)], trainable),
    }
    text = json.dumps(description, indent=1)
    files.write_atomically(folder / "adapter.json", text, "an adapter")


def load(folder: pathlib.Path, base: Params) -> tuple[Adapter, dict[str, Any], dict[str, Any]]:
    """Reads what `save` wrote: (adapter, frozen, trainable), which `adapter.merge` joins.

    Args:
      folder: see `save`.
      base: parameters of the network that the adapter was trained over.

    Raises:
      AdapterError: there is no adapter, or it was trained over another base.
      CheckpointError: its weights are damaged.
      UnreadableError: the storage failed.
    """
    path = folder / "adapter.json"
    if not path.exists():
        raise AdapterError(f"{folder}: no finished adapter (adapter.json is missing)")
    description = json.loads(path.read_text())
    if description["version"] != _VERSION:
        raise AdapterError(
            f"{folder}: an adapter of format {description['version']}, but this code reads "
            f"{_VERSION}; use the version of lt_jax that wrote it, or adapt anew"
        )
    leaves = flatten(base)
    frozen = {name: leaves[name] for name in description["frozen"] if name in leaves}
    if (found := checkpoint.digest(frozen)) != description["base"]:
        raise AdapterError(
            f"{folder}: this adapter was trained over a base with sha256 "
            f"{description['base'][:12]}, but the base given has {found[:12]}; give the one that "
            "it was trained over, or adapt anew"
        )
    # A list is a leaf here: [shape, dtype].
    target = jax.tree.map(
        lambda entry: np.zeros(entry[0], jnp.dtype(entry[1])),
        description["trainable"],
        is_leaf=lambda node: isinstance(node, list),
    )
    if jax.tree.leaves(target):
        target = checkpoint.load_tree(folder / "weights", target)
    fields = description["adapter"]
    return Adapter(**{**fields, "targets": tuple(fields["targets"])}), frozen, target


def _some(paths: Any) -> str:
    """The first few of some paths, for an error."""
    ordered = sorted(paths)
    more = f" and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else ""
    return (", ".join(ordered[:_SHOWN]) or "none") + more
