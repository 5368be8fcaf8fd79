"""A detector and a segmenter whose weights are set by hand, in real checkpoints, for the tests of
`jaxvision.predict` and the command line: what they find is known without training.

One 1x1 convolution marks what is bright and what is red. A box goes around all pixels of a class.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from PIL import Image

from jaxvision.train import create_state
from jaxvision.train.checkpoint import CheckpointStore
from jaxvision.train.optim import sgd
from jaxvision.types import PaddedDetections

CLASSES = ("bright", "red")
MARKED = 0.6
# Of red, green, blue: bright is their mean, red is what red has more than the others.
WEIGHTS = np.array([[1 / 3, 1], [1 / 3, -1 / 2], [1 / 3, -1 / 2]], np.float32)
SIDE = 256


class BrightBoxes(nn.Module):
    num_classes: int = 2

    @nn.compact
    def __call__(self, x, *, train=False):
        return nn.Conv(self.num_classes, (1, 1), use_bias=False, name="marks")(x)


class BrightMaps(nn.Module):
    num_classes: int = 3

    @nn.compact
    def __call__(self, x, *, train=False):
        marks = nn.Conv(2, (1, 1), use_bias=False, name="marks")(x)
        background = jnp.full_like(marks[..., :1], MARKED)
        return {"out": jnp.concatenate([background, marks], axis=-1)}


SELECTIONS = []
"""What `find_bright` was told to select by, call by call of the compiler."""


def find_bright(model, variables, images, sizes, selection):
    """One box a class, around all that is marked."""
    SELECTIONS.append(selection)
    marks = model.apply(variables, images)
    b, h, w, k = marks.shape
    marked = marks > MARKED
    ends = []
    for axis, length in ((1, w), (2, h)):
        line = marked.any(axis=axis)  # [b, length, k]
        ends.append((line.argmax(axis=1), length - line[:, ::-1].argmax(axis=1)))
    (x1, x2), (y1, y2) = ends
    boxes = jnp.stack([x1, y1, x2, y2], axis=-1).astype(jnp.float32)
    valid = marked.any(axis=(1, 2))
    scores = jnp.where(valid, jnp.minimum(marks.max(axis=(1, 2)), 1), 0)
    valid &= scores >= selection.score_threshold
    labels = jnp.broadcast_to(jnp.arange(k, dtype=jnp.int32)[None], (b, k))
    return PaddedDetections(boxes, scores, labels, valid)


def save_run(folder, meta):
    params = {"marks": {"kernel": jnp.asarray(WEIGHTS[None, None])}}
    state = create_state({"params": params}, sgd(0.1))
    meta = {"options": {}, "input_shape": (SIDE, SIDE, 3), "mean": 0.0, "std": 1.0, **meta}
    with CheckpointStore(folder) as store:
        store.save(state, meta=meta)
    return folder


def scene(height=80, width=120, white=(10, 20, 60, 50), red=(70, 30, 110, 70)):
    """A dark picture with a white and a red rectangle."""
    image = np.full((height, width, 3), 20, np.uint8)
    for (x1, y1, x2, y2), color in ((white, (255, 255, 255)), (red, (255, 0, 0))):
        image[y1:y2, x1:x2] = color
    return image


STORED_AS = {  # what exif_transpose will do to it, turned around
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def write_mixed_pictures(folder):
    """Writes good and bad pictures of many kinds; returns {name: white box} of the good ones."""
    picture = Image.fromarray(scene())
    white = (10, 20, 60, 50)
    good = {}

    def keep(name, box=white):
        good[name] = box
        return folder / name

    picture.save(keep("photo.jpg"), quality=95)
    picture.save(keep("drawing.png"))
    picture.convert("L").save(keep("grey.png"))
    picture.convert("RGBA").save(keep("alpha.png"))
    picture.convert("P").save(keep("palette.gif"))
    deep = np.asarray(picture.convert("L")).astype(np.uint16) * 257
    Image.fromarray(deep).save(keep("deep.png"))
    for orientation, turn in STORED_AS.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = keep(f"exif{orientation}.jpg")
        picture.transpose(turn).save(path, quality=95, exif=exif)
    Image.new("RGB", (1, 1), "white").save(keep("dot.png", (0, 0, 1, 1)))
    large = scene(4000, 6000, (500, 1000, 3000, 2500), (3500, 1500, 5500, 3500))
    Image.fromarray(large).save(keep("large.jpg", (500, 1000, 3000, 2500)), quality=80)
    data = (folder / "photo.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(data[: len(data) // 2])
    (folder / "text.jpg").write_text("not a picture\n")
    return good


def tolerance(size):
    """Two of the network's pixels, in the picture's."""
    return 2 * max(1.0, max(size) / SIDE)
