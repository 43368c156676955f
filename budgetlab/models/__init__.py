"""Networks of transformers: those that a step trains, and single language models to be counted."""

from budgetlab.models.build import (
    build_classifier,
    build_network,
    count_parameters,
    export_model,
    given_key,
    load_parameters,
    start_from_teacher,
)
from budgetlab.models.network import FAMILIES, Network
from budgetlab.models.single import SingleModel, describe_model, read_model

__all__ = [
    "FAMILIES",
    "Network",
    "SingleModel",
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
