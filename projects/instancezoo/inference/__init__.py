"""A trained model over images, folders and videos."""

from .inputs import Input, gather_inputs
from .predict import Failure, predict_inputs
from .predictor import ImagePredictor
from .test_time_augmentation import ModelWithTTA

__all__ = ["Failure", "ImagePredictor", "Input", "ModelWithTTA", "gather_inputs", "predict_inputs"]
