"""The config keys that all methods share; those of one method are in its folder."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode


def add_shared_keys(cfg: CfgNode) -> None:
    """Add the keys to Detectron2's config, in place."""
    _add_model_keys(cfg)
    _add_detector_switches(cfg)
    _add_input_keys(cfg)
    _add_other_keys(cfg)


def _add_model_keys(cfg: CfgNode) -> None:
    cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    # Form of `pred_masks` after inference: "bitmask" (bool tensor, as in Detectron2) or "rle" (list
    # of COCO RLE dicts; full-size masks are never built). Evaluation always uses "rle".
    cfg.MODEL.MASK_OUTPUT = "bitmask"
    # Load what fits of MODEL.WEIGHTS and leave the other tensors as initialised. Set it to
    # fine-tune on other classes.
    cfg.MODEL.WEIGHTS_ALLOW_PARTIAL = False
    # Load weights that are NaN or infinite, or that overflow float32, instead of an error that
    # names them. Set it to look into a training that diverged.
    cfg.MODEL.WEIGHTS_ALLOW_NON_FINITE = False

    # Number of pyramid levels above P5 made by convolutions: 2 (P6 and P7), 1 or 0; read by
    # MODEL.BACKBONE.NAME "build_resnet_fpn_top_levels_backbone".
    cfg.MODEL.FPN.TOP_LEVELS = 2
    # ReLU between P6 and P7.
    cfg.MODEL.FPN.TOP_RELU = True
    # Top-down path: "nearest" doubling (Lin et al.), or "bilinear" resizing to each map's own size,
    # which takes images of any size.
    cfg.MODEL.FPN.UPSAMPLING = "nearest"
    # ReLU after the output convolution of each level.
    cfg.MODEL.FPN.OUTPUT_RELU = False

    # In the stages of DEFORM_ON_PER_STAGE, every n-th block is deformable, from the first on.
    cfg.MODEL.RESNETS.DEFORM_INTERVAL = 1
    # Deformable convolutions have a bias, also under a norm.
    cfg.MODEL.RESNETS.DEFORM_BIAS = False

    # Exponential moving average of the weights: evaluated, and saved beside the model.
    cfg.MODEL.setdefault("EMA", CfgNode())
    cfg.MODEL.EMA.ENABLED = False
    # Decay per iteration, in [0, 1); lower it for short trainings.
    cfg.MODEL.EMA.DECAY = 0.9998

    # timm feature extractor, under an FPN for MODEL.BACKBONE.NAME "build_timm_fpn_backbone", or
    # in a U-Net for "build_unet_backbone".
    cfg.MODEL.setdefault("TIMM", CfgNode())
    cfg.MODEL.TIMM.NAME = "resnet18"
    # Its weights: "" random, "hub" timm's own, "package:NAME" of an installed package, or a file.
    cfg.MODEL.TIMM.WEIGHTS = ""

    # U-Net, for MODEL.BACKBONE.NAME "UNetBackbone": channels of its stages, the first at the
    # image's own size, each further one at half the size.
    cfg.MODEL.setdefault("UNET", CfgNode())
    cfg.MODEL.UNET.WIDTHS = [64, 128, 256, 512, 1024]
    # Norm of all convolutions of the U-Net or decoder.
    cfg.MODEL.UNET.NORM = "BN"
    # Maps that heads may use: "u1" has the image's size, "u2" half of it, ...
    cfg.MODEL.UNET.OUT_FEATURES = ["u1"]
    # The decoder of a U-Net on another network, for MODEL.BACKBONE.NAME "build_unet_backbone"; its
    # map is "u1". The network is "resnet" (MODEL.RESNETS) or "timm" (MODEL.TIMM).
    cfg.MODEL.UNET.ENCODER = "resnet"
    # Channels of its steps, the first at the image's own size, each further one at half the size.
    cfg.MODEL.UNET.DECODER_WIDTHS = [64, 96, 128, 256, 320]


def _add_detector_switches(cfg: CfgNode) -> None:
    """Choices of other frameworks; those of Detectron2 are the defaults."""
    # The keys of MODEL.RPN are read by MODEL.PROPOSAL_GENERATOR.NAME "AdjustableRPN".
    rpn = cfg.MODEL.RPN
    # Limit how much a box may shrink in one step, as well as how much it may grow.
    rpn.SYMMETRIC_DELTA_CLAMP = False
    # Divide the losses by the number of sampled anchors, rather than by the number asked for.
    rpn.NORMALIZE_BY_SAMPLES = False
    # With BOUNDARY_THRESH: leave anchors outside the image out before matching, not after.
    rpn.DISCARD_BEFORE_MATCHING = False
    # IoU that the best anchors of an object need to be positive below the upper threshold.
    rpn.LOW_QUALITY_FLOOR = 0.0
    # Such an anchor learns this object, even if it overlaps another one more.
    rpn.LOW_QUALITY_REMATCH = False
    # The keys of MODEL.ROI_HEADS are read by MODEL.ROI_HEADS.NAME "AdjustableROIHeads" and by
    # heads that say so.
    heads = cfg.MODEL.ROI_HEADS
    heads.SYMMETRIC_DELTA_CLAMP = False
    # An object gets the boxes that overlap it most, if their IoU reaches the threshold, even if
    # they overlap another object more.
    heads.LOW_QUALITY_MATCHES = False
    # Pad ground-truth masks to the size of the batch before they are cut to boxes; it changes
    # targets in the last half pixel at the border of the image.
    heads.PAD_GT_MASKS = False


def _add_input_keys(cfg: CfgNode) -> None:
    # Form of ground-truth masks; "bitmask" takes annotations as polygons and as RLE.
    cfg.INPUT.MASK_FORMAT = "bitmask"
    # Height and width in pixels that every image is stretched to, in training and inference. ()
    # keeps the aspect ratio and resizes by MIN_SIZE_* and MAX_SIZE_*.
    cfg.INPUT.FIXED_SIZE = ()
    # With FIXED_SIZE: lowest and highest height in pixels that training samples from; the width
    # stays. () always takes FIXED_SIZE.
    cfg.INPUT.FIXED_HEIGHTS_TRAIN = ()
    # Antialias where the resize to FIXED_SIZE or FIXED_HEIGHTS_TRAIN shrinks an image. False takes
    # the four nearest pixels, as OpenCV's bilinear resize does, for images and masks alike.
    cfg.INPUT.FIXED_SIZE_ANTIALIAS = True
    # Augmentations of training images before crop, resize and flip, in their order: names, or one
    # name with its arguments each. docs/augmentations.md lists them.
    cfg.INPUT.AUGMENTATIONS = []
    # Ignore training objects with fewer pixels than MIN_OBJECT_AREA or with both box sides shorter
    # than MIN_OBJECT_SIDE pixels (before resizing).
    cfg.INPUT.MIN_OBJECT_AREA = 0
    cfg.INPUT.MIN_OBJECT_SIDE = 0
    # Ignore training objects with a box side below this many pixels of the network input, after all
    # augmentations; an image that loses all its objects by it is replaced by another one.
    cfg.INPUT.MIN_BOX_SIDE = 0.0
    # Give crowds (iscrowd 1) to models that use them, as regions that count neither as object nor
    # as background. Other models leave them out.
    cfg.INPUT.CROWDS = False
    # How the values of image files map to [0, 255], the range of MODEL.PIXEL_MEAN: "type" (8-bit
    # values stay, 16-bit ones become their high byte, floats in [0, 1] are multiplied by 255),
    # "minmax" or "percentiles" of each image ("percentiles 1 99" for others than 0.5 and 99.5), or
    # the two values that become 0 and 255, such as (0, 4095). All but "type" keep every level.
    # The number of channels is that of MODEL.PIXEL_MEAN.
    cfg.INPUT.PIXEL_RANGE = "type"
    # Largest number of pixels of an image, a guard against damaged and hostile files; 0 for any.
    cfg.INPUT.MAX_PIXELS = 178956970
    # Folder of semantic maps of the images of DATASETS.TRAIN, for methods that learn from
    # them: PNG files with the images' names, whose values are classes. "" takes the files that the
    # records of a data set name (sem_seg_file_name), if any.
    cfg.INPUT.SEMANTIC_MAPS = ""
    # The same for DATASETS.TEST, whose loss TEST.VALIDATION_LOSS computes.
    cfg.INPUT.SEMANTIC_MAPS_TEST = ""
    # The maps are an input of the model: read those of SEMANTIC_MAPS_TEST in inference.
    cfg.INPUT.SEMANTIC_INPUT = False
    # Dataset mapper: "instance", or one that a method registers (its README says when to use it).
    cfg.INPUT.MAPPER = "instance"


def _add_other_keys(cfg: CfgNode) -> None:
    # "SGD" or "AdamW".
    cfg.SOLVER.OPTIMIZER = "SGD"
    # Precision under SOLVER.AMP.ENABLED: "bfloat16" (any device) or "float16" (scaled gradients).
    cfg.SOLVER.AMP.DTYPE = "bfloat16"

    # Refuse a data set with bad annotations. False drops them, and reports counts and ids.
    cfg.DATASETS.STRICT = False
    # Number of classes of the data sets that a config file names, for every NUM_CLASSES that was
    # not set itself; 0 leaves them as they are. train_net.py replaces it by the data set's own.
    cfg.DATASETS.NUM_CLASSES = 0

    # Library that matches detections: "hotcoco", or the slower "pycocotools" (same numbers). AP
    # counts all detections of the model: raise TEST.DETECTIONS_PER_IMAGE, or the method's own key,
    # for images with more objects. COCO's figures, which count the 100 most confident ones of an
    # image and class, are shown beside where they differ (in metrics.json: "segm_at_100").
    cfg.TEST.COCO_BACKEND = "hotcoco"
    # Also give the score of the 2018 Data Science Bowl, "DSB" among the figures of masks: the mean
    # over images and IoU thresholds of found objects / (found + false + missed). It takes all
    # detections of this score or more alike.
    cfg.TEST.DSB_SCORE = False
    cfg.TEST.DSB_SCORE_THRESH = 0.5
    # Number of best and number of worst images drawn after the last evaluation.
    cfg.TEST.NUM_PICTURES = 20
    # TASK/METRIC of the printed tables, such as segm/AP or bbox/AP50, whose best checkpoint is kept
    # as model_best.pth; "" keeps none. For a model without masks segm means bbox.
    cfg.TEST.BEST_METRIC = "segm/AP"
    # Also compute the losses on DATASETS.TEST every TEST.EVAL_PERIOD iterations.
    cfg.TEST.VALIDATION_LOSS = False
