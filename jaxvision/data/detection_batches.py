"""Batches of pictures with objects, of fixed shapes, as a pure function of (seed, step)."""

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property, lru_cache

import numpy as np
from jaxtyping import Bool, Int32, Int64

from jaxvision.data.batch_shapes import MultiScale, Size, bucket_of, picture_sizes, resize_batch
from jaxvision.data.detection import DetectionDataset
from jaxvision.data.detection_geometry import Fill
from jaxvision.data.mosaic import Mix
from jaxvision.data.object_slots import keep_largest, pad_keypoints, pad_objects
from jaxvision.data.order import (
    AUGMENTATION,
    check_batch_size,
    epoch_order,
    generator,
    grouped_order,
    steps_of,
)
from jaxvision.data.proposals import Proposals, pad_proposals
from jaxvision.data.transforms import IMAGENET_MEAN_COLOR, Example, Transform
from jaxvision.errors import UserError


@dataclass(frozen=True, eq=False)
class DetectionBatches:
    """The batches of a detection data set: call it with a step, from 0 on without an end.

    `batches(step)`, a pure function of `seed` and `step`, is a dict of arrays: `image` uint8
    [b, h, w, 3]; `boxes` float32 [b, m, 4], `labels` int32 [b, m] and `difficult` bool [b, m], of
    which `box_valid` bool [b, m] says what is an object and what is padding (zeros); `size` int32
    [b, 2], the height and width of the picture at the top left of the padded one; `image_id` [b];
    with `masks` `masks` bool [b, m, h, w], and with `keypoints` `keypoints` float32 [b, m, p, 3]:
    x, y and visibility, 0 where there is none. Where an epoch's batches are filled up, all of them
    have `valid`, bool [b], as those of `Batches` do; `drop_last` leaves partial ones out instead.

    `m` is `max_objects`, by default the most that a picture has, times four for a mosaic; where
    there are more, the largest boxes stay. `mix(example, pick, rng)` (see `mosaic`) and then
    `transform(example, rng)` augment each example with a generator from (seed, epoch, index).

    Without `buckets` they must bring pictures to one size. With `buckets`, a few (height, width),
    each picture is padded at the right and the bottom with `fill`, by default what ImageNet's
    normalisation takes to 0, to the smallest bucket that holds it; the pictures of a batch share
    one, so batches have at most as many shapes. Their sizes come from the files' headers, so the
    transform must have `output_size`, as those without chance do. `multi_scale` resizes the batch
    to a size that changes every few steps.

    With `proposals` (see `load_proposals`), one list of boxes for each picture, batches have
    `proposals` float32 [b, p, 4] and `proposal_valid` bool [b, p], moved with the picture: the
    first `num_proposals`, by default as many as a picture has at most.

    Raises `UserError` for a batch size that cannot be, and for a picture that no bucket holds; a
    call raises it for a broken file, by name.

    >>> batches = DetectionBatches(train, 2, buckets=[(800, 1344), (1344, 800)],
    ...                            transform=resize_shortest_side())  # doctest: +SKIP
    >>> batches(0)["image"].shape, batches(0)["boxes"].shape  # doctest: +SKIP
    ((2, 800, 1344, 3), (2, 42, 4))
    """

    dataset: DetectionDataset
    batch_size: int
    _: KW_ONLY
    seed: int = 0
    shuffle: bool = True
    transform: Transform | None = None
    mix: Mix | None = None
    max_objects: int | None = None
    buckets: Sequence[Size] | None = None
    masks: bool = False
    keypoints: bool = False
    drop_last: bool = False
    multi_scale: MultiScale | None = None
    fill: Fill = IMAGENET_MEAN_COLOR
    proposals: Proposals | None = None
    num_proposals: int | None = None

    def __post_init__(self) -> None:
        where = f"{self.dataset.name}'s {self.dataset.split} set"
        check_batch_size(self.batch_size, len(self.dataset), where)
        if self.max_objects is not None and self.max_objects < 1:
            raise ValueError(f"expected max_objects of at least 1, got {self.max_objects}")
        if self.masks and self.dataset.masks is None:
            raise UserError(f"{where}: expected masks, but it has none: leave masks=True out")
        if self.keypoints and self.dataset.keypoints is None:
            raise UserError(f"{where}: expected keypoints, but it has none")
        if self.proposals is not None:
            if len(self.proposals) != len(self.dataset):
                raise ValueError(
                    f"expected proposals of {len(self.dataset)} pictures, got of "
                    f"{len(self.proposals)}"
                )
            if self.mix is not None:
                raise ValueError("expected proposals or a mix, which has none: not both")
        if self.buckets is not None:
            if self.mix is not None or self.multi_scale is not None:
                raise ValueError("expected buckets, or a mix or multi_scale of one size: not both")
            if not self.buckets:
                raise ValueError("expected at least one bucket")
        if not self.steps_per_epoch:
            raise UserError(
                f"{where}: expected a bucket with at least {self.batch_size} pictures, as "
                "drop_last asks for, got none: lower the batch size"
            )

    @property
    def steps_per_epoch(self) -> int:
        counts = np.bincount(self._bucket_numbers)
        return sum(steps_of(int(n), self.batch_size, self.drop_last) for n in counts)

    @property
    def has_padding(self) -> bool:
        """Whether batches are filled up with examples of theirs again, and so have `valid`."""
        return self.steps_per_epoch * self.batch_size > len(self.dataset)

    @cached_property
    def object_slots(self) -> int:
        """How many objects an example of a batch has room for: the `m` of its arrays."""
        if self.max_objects is not None:
            return self.max_objects
        most = max(len(objects) for objects in self.dataset.objects)
        return max(1, most * (1 if self.mix is None else self.mix.examples))

    @cached_property
    def proposal_slots(self) -> int:
        """How many proposals an example of a batch has room for."""
        if self.num_proposals is not None or self.proposals is None:
            return self.num_proposals or 0
        return max(1, int(np.diff(self.proposals.offsets).max()))

    @cached_property
    def sizes(self) -> Int32[np.ndarray, "n 2"]:
        """(height, width) of each picture after the transform, without decoding any."""
        before = picture_sizes(self.dataset)
        if self.transform is None:
            return before
        output_size: Callable[[Size], Size] | None = getattr(self.transform, "output_size", None)
        if output_size is None:
            raise ValueError(
                "expected a transform that knows its output size, got one that does not, or whose "
                "size is random: end it with letterbox or scale_jitter, without buckets"
            )
        after = [output_size((int(h), int(w))) for h, w in before]
        return np.array(after, np.int32).reshape(-1, 2)

    def padded_order(self, epoch: int) -> Int32[np.ndarray, "slots"]:
        """The index of the example in each slot of an epoch, `steps_per_epoch * batch_size` long.

        Batch s of the epoch is slots `[s * batch_size, (s + 1) * batch_size)`. Read-only.
        """
        return self._order(epoch)[0].reshape(-1)

    def valid_slots(self, epoch: int) -> Bool[np.ndarray, "slots"]:
        """For each slot of an epoch, whether its example counts."""
        return self._order(epoch)[1].reshape(-1)

    def arrays(self) -> dict[str, np.ndarray]:
        """What batches are gathered from, where nothing is done to them on the host: an array of
        all examples for each name of a batch. Otherwise raises `ValueError`."""
        changed = self.buckets is not None or self.multi_scale is not None
        if not self._is_plain or changed or self.proposals is not None:
            raise ValueError(
                "a data set of files, or augmented on the host, or in buckets, or with proposals, "
                "has no arrays to gather from and cannot be resident on the device"
            )
        if self._image_ids.dtype != np.int32:
            raise ValueError("expected image ids within 32 bits: a device has no more")
        arrays = dict(self._arrays)
        if self.masks:
            shape = len(self.dataset), self.object_slots, *self.dataset.images.shape[1:3]
            arrays["masks"] = np.zeros(shape, bool)
            for i in range(len(self.dataset)):
                example = keep_largest(self.dataset.example(i, masks=True), self.object_slots)
                arrays["masks"][i, : len(example["masks"])] = example["masks"]
        if self.keypoints:
            examples = [self.dataset.example(i, keypoints=True) for i in range(len(self.dataset))]
            largest = [keep_largest(example, self.object_slots) for example in examples]
            count = len(self.dataset.keypoint_names)
            arrays["keypoints"] = pad_keypoints(largest, self.object_slots, count)
        return arrays

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        if step < 0:
            raise ValueError(f"expected a step of at least 0, got {step}")
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        indices, valid = (part[step_in_epoch] for part in self._order(epoch))
        bare = self.buckets is None and not (self.masks or self.keypoints)
        if self._is_plain and bare:
            batch = {name: array[indices] for name, array in self._arrays.items()}
            if self.proposals is not None:
                found = [self.proposals[int(i)] for i in indices]
                batch |= pad_proposals(found, self.proposal_slots)
        else:
            batch = self._assembled(epoch, indices)
        if self.has_padding:
            batch["valid"] = valid.copy()
        if self.multi_scale is not None:
            batch = resize_batch(batch, self.multi_scale.size(step, seed=self.seed))
        return batch

    @property
    def _is_plain(self) -> bool:
        """Whether examples are what the data set has in memory."""
        in_memory = isinstance(self.dataset.images, np.ndarray)
        return in_memory and self.transform is None and self.mix is None

    @cached_property
    def _arrays(self) -> dict[str, np.ndarray]:
        images, slots = self.dataset.images, self.object_slots
        objects = [keep_largest(vars(objects), slots) for objects in self.dataset.objects]
        sizes = picture_sizes(self.dataset)
        padded = pad_objects(objects, slots)
        return {"image": images, **padded, "size": sizes, "image_id": self._image_ids}

    @cached_property
    def _image_ids(self) -> Int32[np.ndarray, "n"] | Int64[np.ndarray, "n"]:
        ids = self.dataset.image_ids
        small = np.abs(ids).max() <= np.iinfo(np.int32).max
        return ids.astype(np.int32) if small else ids

    @cached_property
    def _bucket_numbers(self) -> Int32[np.ndarray, "n"]:
        if self.buckets is None:
            return np.zeros(len(self.dataset), np.int32)
        return bucket_of(self.sizes, self.buckets, self.dataset.names)

    @cached_property
    def _order(self) -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
        """Of an epoch: the batches' examples and whether they count, [steps, b] each. Read-only."""

        def order_of(epoch: int) -> tuple[np.ndarray, np.ndarray]:
            order = epoch_order(
                len(self.dataset), seed=self.seed, epoch=epoch, shuffle=self.shuffle
            )
            parts = grouped_order(
                order, self._bucket_numbers, self.batch_size, drop_last=self.drop_last
            )
            for part in parts:
                part.flags.writeable = False  # every caller gets these
            return parts

        return lru_cache(maxsize=4)(order_of)

    def _assembled(self, epoch: int, indices: Int32[np.ndarray, "b"]) -> dict[str, np.ndarray]:
        examples = [self._example(epoch, int(index)) for index in indices]
        sizes = [example["image"].shape[:2] for example in examples]
        if self.buckets is not None:
            canvas = self._bucket(sizes, indices)
        else:
            canvas = self._one_size(sizes, indices)
        batch = {
            "image": self._pad_images(examples, canvas),
            **pad_objects(examples, self.object_slots),
            "size": np.array(sizes, np.int32),
            "image_id": self._image_ids[indices],
        }
        if self.proposals is not None:
            batch |= pad_proposals([each["proposals"] for each in examples], self.proposal_slots)
        if self.masks:
            batch["masks"] = np.zeros((len(examples), self.object_slots, *canvas), bool)
            for row, example, (h, w) in zip(batch["masks"], examples, sizes, strict=True):
                row[: len(example["masks"]), :h, :w] = example["masks"]
        if self.keypoints:
            batch["keypoints"] = pad_keypoints(
                examples, self.object_slots, len(self.dataset.keypoint_names)
            )
        return batch

    def _example(self, epoch: int, index: int) -> Example:
        example = self._from_dataset(index)
        if self.proposals is not None:
            example["proposals"] = self.proposals[index][: self.proposal_slots]
        rng = generator(self.seed, epoch, AUGMENTATION, index)
        if self.mix is not None:
            example = self.mix(example, lambda: self._another(rng), rng)
        if self.transform is not None:
            example = self.transform(example, rng)
        return keep_largest(example, self.object_slots)

    def _another(self, rng: np.random.Generator) -> Example:
        return self._from_dataset(int(rng.integers(len(self.dataset))))

    def _from_dataset(self, index: int) -> Example:
        return self.dataset.example(index, masks=self.masks, keypoints=self.keypoints)

    def _bucket(self, sizes: Sequence[Size], indices: Int32[np.ndarray, "b"]) -> Size:
        for size, index in zip(sizes, indices, strict=True):
            expected = tuple(self.sizes[index].tolist())
            if size != expected:
                raise UserError(
                    f"{self.dataset.names[index]}: expected {expected[0]} x {expected[1]} pixels "
                    f"(h x w) after the transform, from the file's header, got {size[0]} x "
                    f"{size[1]}: save the picture anew, or correct the transform's output_size"
                )
        return tuple(self.buckets[self._bucket_numbers[indices[0]]])

    def _one_size(self, sizes: Sequence[Size], indices: Int32[np.ndarray, "b"]) -> Size:
        for size, index in zip(sizes, indices, strict=True):
            if size != sizes[0]:
                names = self.dataset.names
                raise UserError(
                    f"{self.dataset.name}: expected pictures of one size in a batch, got "
                    f"{names[indices[0]]} of {sizes[0][0]} x {sizes[0][1]} and {names[index]} of "
                    f"{size[0]} x {size[1]} (h x w): give buckets, or a transform that brings "
                    "them to one size, such as letterbox"
                )
        return sizes[0]

    def _pad_images(self, examples: Sequence[Example], canvas: Size) -> np.ndarray:
        images = np.empty((len(examples), *canvas, 3), np.uint8)
        for row, example in zip(images, examples, strict=True):
            height, width = example["image"].shape[:2]
            row[:height, :width] = example["image"]
            row[height:] = self.fill
            row[:height, width:] = self.fill
        return images
