"""Weights: torch's files read and written without torch, converted both ways, fetched."""

from jaxvision.weights.catalog import Preprocessing, Weights, find_weights
from jaxvision.weights.convert import from_torch, to_torch
from jaxvision.weights.hub import load_weights
from jaxvision.weights.torch_file import read_torch
from jaxvision.weights.torch_writer import write_safetensors, write_torch

__all__ = [
    "Preprocessing",
    "Weights",
    "find_weights",
    "from_torch",
    "load_weights",
    "read_torch",
    "to_torch",
    "write_safetensors",
    "write_torch",
]
