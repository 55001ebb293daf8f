"""Training base classifiers on the copies that a scheme makes of images."""

from certify.training.checkpoint import Checkpoint, load_checkpoint, model_code, save_checkpoint
from certify.training.config import TrainingConfig
from certify.training.copies import training_copies
from certify.training.measure import base_accuracy, copy_statistics, denoising_errors
from certify.training.schedules import SCHEDULES
from certify.training.trainer import EpochResult, Trainer

__all__ = [
    "SCHEDULES",
    "Checkpoint",
    "EpochResult",
    "Trainer",
    "TrainingConfig",
    "base_accuracy",
    "copy_statistics",
    "denoising_errors",
    "load_checkpoint",
    "model_code",
    "save_checkpoint",
    "training_copies",
]
