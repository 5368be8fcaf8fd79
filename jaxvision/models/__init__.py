"""Linen modules: pictures in, raw outputs out. `get_model(name)` builds one."""

from jaxvision.models.initialization import abstract_variables, init_variables
from jaxvision.models.layers import Head
from jaxvision.models.zoo import get_model, list_models

__all__ = ["Head", "abstract_variables", "get_model", "init_variables", "list_models"]
