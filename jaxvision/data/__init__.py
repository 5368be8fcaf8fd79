"""Data sets, batches, augmentation and downloads, in NumPy: nothing here imports JAX.

TFDS, OpenCV, requests and Pillow are imported when first used, so that this import stays quick.
"""

from jaxvision.data.arrays import ArrayDataset
from jaxvision.data.autoaugment import rand_augment, trivial_augment_wide
from jaxvision.data.batch_shapes import MultiScale
from jaxvision.data.color import color_jitter, hsv_jitter, photometric_distort
from jaxvision.data.detection import DetectionDataset, Objects
from jaxvision.data.detection_batches import DetectionBatches
from jaxvision.data.detection_geometry import Keep, Placement
from jaxvision.data.detection_sources import DETECTION_DATASETS, load_detection
from jaxvision.data.detection_transforms import (
    drop_difficult,
    letterbox,
    pad_to_multiple,
    random_flip,
    random_iou_crop,
    random_zoom_out,
    resize_shortest_side,
    resize_to,
    scale_jitter,
)
from jaxvision.data.export import write_coco_json, write_voc_xml, write_yolo_txt
from jaxvision.data.files import FileDataset, to_arrays
from jaxvision.data.formats.coco import CocoDataset, load_coco, load_coco_folder
from jaxvision.data.formats.voc import load_voc_folder
from jaxvision.data.formats.yolo_txt import load_yolo_folder
from jaxvision.data.geometry import center_crop, pad, resize
from jaxvision.data.image_folder import load_class_folders, load_image_folder
from jaxvision.data.images import decode_image, read_image
from jaxvision.data.mixing import cutmix, mixup, random_choice
from jaxvision.data.mosaic import mosaic
from jaxvision.data.order import epoch_order
from jaxvision.data.pipeline import Batches, prefetch
from jaxvision.data.presets import classification_eval, classification_train, every_picture
from jaxvision.data.proposals import Proposals, load_proposals
from jaxvision.data.selective_search import selective_search
from jaxvision.data.semantic import semantic_dataset, semantic_map
from jaxvision.data.sources import DATASETS, load_dataset, load_splits
from jaxvision.data.transforms import (
    Transform,
    compose,
    random_crop,
    random_erasing,
    random_horizontal_flip,
    random_resized_crop,
    random_vertical_flip,
)

__all__ = [
    "DATASETS",
    "DETECTION_DATASETS",
    "ArrayDataset",
    "Batches",
    "CocoDataset",
    "DetectionBatches",
    "DetectionDataset",
    "FileDataset",
    "Keep",
    "MultiScale",
    "Objects",
    "Placement",
    "Proposals",
    "Transform",
    "center_crop",
    "classification_eval",
    "classification_train",
    "color_jitter",
    "compose",
    "cutmix",
    "decode_image",
    "drop_difficult",
    "epoch_order",
    "every_picture",
    "hsv_jitter",
    "letterbox",
    "load_class_folders",
    "load_coco",
    "load_coco_folder",
    "load_dataset",
    "load_detection",
    "load_image_folder",
    "load_proposals",
    "load_splits",
    "load_voc_folder",
    "load_yolo_folder",
    "mixup",
    "mosaic",
    "pad",
    "pad_to_multiple",
    "photometric_distort",
    "prefetch",
    "rand_augment",
    "random_choice",
    "random_crop",
    "random_erasing",
    "random_flip",
    "random_horizontal_flip",
    "random_iou_crop",
    "random_resized_crop",
    "random_vertical_flip",
    "random_zoom_out",
    "read_image",
    "resize",
    "resize_shortest_side",
    "resize_to",
    "scale_jitter",
    "selective_search",
    "semantic_dataset",
    "semantic_map",
    "to_arrays",
    "trivial_augment_wide",
    "write_coco_json",
    "write_voc_xml",
    "write_yolo_txt",
]
