"""The second process of experiments/save_and_load.py: it restores weights on several devices.

It is started with XLA_FLAGS=--xla_force_host_platform_device_count=N, restores WORK/weights.orbax
as copies and in pieces, saves the pieces as WORK/from_devices.orbax and writes WORK/devices.json.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from weight_files import blueprint, digest, make_picture, parse_options, predict

from jaxvision.train.checkpoint import load_variables, save_variables
from jaxvision.train.run import enable_compilation_cache


@dataclass(frozen=True)
class Config:
    work: Path
    digest: str
    """Of the weights as they were saved."""
    model: str = "vgg16"
    options: tuple[str, ...] = ()
    picture_size: int = 224
    seed: int = 0


def main(config: Config) -> None:
    model, like = blueprint(config.model, parse_options(config.options), config.picture_size)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    expected = np.load(config.work / "logits.npy")
    picture = jax.device_put(
        make_picture(config.picture_size, config.seed), NamedSharding(mesh, PartitionSpec())
    )
    reports = []
    for placed, spec_of in (("copies", lambda leaf: PartitionSpec()), ("pieces", cut)):
        wanted = jax.tree.map(
            lambda leaf, spec_of=spec_of: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec_of(leaf))
            ),
            like,
        )
        restored = load_variables(config.work / "weights.orbax", wanted)
        logits = np.asarray(predict(model, restored, picture))
        difference = float(np.abs(logits - expected).max() / np.abs(expected).max())
        reports.append(
            {
                "placed": placed,
                "devices": len(jax.devices()),
                "same": digest(restored) == config.digest,
                "difference": difference,
                "close": difference <= 1e-4,
                "bytes_per_device": bytes_on(jax.devices()[0], restored),
                "placed_as_asked": all(
                    leaf.sharding.is_equivalent_to(want.sharding, leaf.ndim)
                    for leaf, want in zip(
                        jax.tree.leaves(restored), jax.tree.leaves(wanted), strict=True
                    )
                ),
            }
        )
    save_variables(config.work / "from_devices.orbax", restored)
    (config.work / "devices.json").write_text(json.dumps(reports))


def cut(leaf: Any) -> PartitionSpec:
    """Cuts the longest axis that divides by the number of devices; no such axis, no cut."""
    number = len(jax.devices())
    axes = [axis for axis, size in enumerate(leaf.shape) if size % number == 0 and size]
    if not axes:
        return PartitionSpec()
    longest = max(axes, key=lambda axis: leaf.shape[axis])
    return PartitionSpec(*("data" if axis == longest else None for axis in range(leaf.ndim)))


def bytes_on(device: jax.Device, variables: Any) -> int:
    return sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(variables)
        for shard in leaf.addressable_shards
        if shard.device == device
    )


if __name__ == "__main__":
    enable_compilation_cache()
    main(tyro.cli(Config, description=__doc__))
