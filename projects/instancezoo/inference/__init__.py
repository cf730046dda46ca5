"""A trained model over images, folders and videos."""

from .inputs import Input, gather_inputs
from .predict import Failure, predict_inputs
from .predictor import ImagePredictor

__all__ = ["Failure", "ImagePredictor", "Input", "gather_inputs", "predict_inputs"]
