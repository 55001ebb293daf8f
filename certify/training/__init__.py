"""Training base classifiers on the copies that a scheme makes of them."""

from certify.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from certify.training.schedules import SCHEDULES
from certify.training.trainer import Trainer, TrainingConfig

__all__ = ["SCHEDULES", "Checkpoint", "Trainer", "TrainingConfig", "load_checkpoint", "save_checkpoint"]
