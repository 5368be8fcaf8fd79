"""Linen modules: pictures in, raw outputs out. `get_model(name)` builds one."""

from jaxvision.models.initialization import init_variables
from jaxvision.models.layers import Head
from jaxvision.models.zoo import get_model, list_models

__all__ = ["Head", "get_model", "init_variables", "list_models"]
