"""Training of networks that register: volumes prepared once, pairs drawn and deformed, LapIRN or VoxelMorph fitted."""

from dsir_metric_train.registration.loop import read_registration, train_registration
from dsir_metric_train.registration.recipe import RegistrationRecipe

__all__ = ["RegistrationRecipe", "read_registration", "train_registration"]
