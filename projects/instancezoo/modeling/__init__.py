"""Skeletons that several methods share; importing it registers them in Detectron2's registries."""

import instancezoo.modeling.adjustable
import instancezoo.modeling.anchors
import instancezoo.modeling.backbones
import instancezoo.modeling.rcnn  # noqa: F401
