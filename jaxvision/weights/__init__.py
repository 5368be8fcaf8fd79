"""Weights: torch's files read and written without torch, converted both ways, fetched."""

from jaxvision.weights.backbone import put_backbone
from jaxvision.weights.catalog import Weights, find_weights
from jaxvision.weights.convert import from_torch, to_torch
from jaxvision.weights.darknet import read_darknet_weights, write_darknet_weights
from jaxvision.weights.darknet_cfg import read_darknet_cfg
from jaxvision.weights.hub import load_weights
from jaxvision.weights.preprocessing import Letterbox, Preprocessing, ShortestSide, Stretch
from jaxvision.weights.torch_file import read_torch
from jaxvision.weights.torch_writer import write_safetensors, write_torch

__all__ = [
    "Letterbox",
    "Preprocessing",
    "ShortestSide",
    "Stretch",
    "Weights",
    "find_weights",
    "from_torch",
    "load_weights",
    "put_backbone",
    "read_darknet_cfg",
    "read_darknet_weights",
    "read_torch",
    "to_torch",
    "write_darknet_weights",
    "write_safetensors",
    "write_torch",
]
