"""COCO evaluation straight from run lengths: numbers, tables, pictures."""

from instancezoo.evaluation.average_precision import Evaluation, evaluate_results
from instancezoo.evaluation.bowl_score import dsb_score
from instancezoo.evaluation.evaluator import InstanceEvaluator
from instancezoo.evaluation.ground_truth import GroundTruth

__all__ = ["Evaluation", "GroundTruth", "InstanceEvaluator", "dsb_score", "evaluate_results"]
