"""Networks of transformers: those that a step trains, and whole language models to be counted."""

from budgetlab.models.build import (
    build_classifier,
    build_network,
    count_parameters,
    given_key,
    load_parameters,
    start_from_teacher,
)
from budgetlab.models.export import export_model
from budgetlab.models.network import Network
from budgetlab.models.whole import WholeModel, describe_model, read_model

__all__ = [
    "Network",
    "WholeModel",
    "build_classifier",
    "build_network",
    "count_parameters",
    "describe_model",
    "export_model",
    "given_key",
    "load_parameters",
    "read_model",
    "start_from_teacher",
]
