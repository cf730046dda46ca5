#!/usr/bin/env python3
"""Train or evaluate any config.

python train_net.py --config-file configs/mask_rcnn/mask_rcnn_tiny.yaml
python train_net.py --config-file ... --dataset mine=ann.json:images DATASETS.TRAIN "('mine',)"
torchrun --nproc-per-node 2 train_net.py --config-file ...
"""

from argparse import ArgumentParser, Namespace
from typing import Any

from instancezoo.cli.quiet import silence_dependencies, wait_passively

if __name__ in ("__main__", "__mp_main__"):  # "__mp_main__": processes started by --num-gpus
    silence_dependencies()
    wait_passively()

from detectron2.engine import default_argument_parser, default_setup
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from instancezoo.cli.arguments import add_dataset_argument
from instancezoo.config import ZooConfig, load_cfg
from instancezoo.engine import Trainer, errors_in_one_line, launch
from instancezoo.engine.output import begin_run, lock_output
from instancezoo.files import name_in_errors
from instancezoo.trial import explain_failures


def build_parser() -> ArgumentParser:
    parser = default_argument_parser(epilog=__doc__)
    add_dataset_argument(parser)
    parser.add_argument(
        "--allow-partial",
        action="store_true",
        help="load only the tensors that fit, for example to fine-tune on other classes",
    )
    return parser


def setup(args: Namespace) -> ZooConfig:
    """Read and freeze the config of a run, register its data sets and start logging.

    `OUTPUT_DIR/config.yaml` is this config: any client of Detectron2 can build the model from it.
    """
    overrides = list(args.opts)
    if args.allow_partial:
        overrides += ["MODEL.WEIGHTS_ALLOW_PARTIAL", True]
    cfg = load_cfg(args.config_file, overrides, args.dataset, training=not args.eval_only)
    cfg.freeze()
    lock_output(cfg.OUTPUT_DIR)
    with name_in_errors(cfg.OUTPUT_DIR):
        default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="instancezoo")
    return cfg


def train_or_evaluate(cfg: ZooConfig, args: Namespace) -> Any:
    if args.eval_only:
        return Trainer.evaluate_weights(cfg, resume=args.resume)
    if not args.resume:  # now: a kill while images are looked up must not leave the run before
        begin_run(cfg.OUTPUT_DIR)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def main(args: Namespace) -> Any:
    cfg = setup(args)
    with name_in_errors(cfg.OUTPUT_DIR), explain_failures(cfg, args.config_file):
        results = train_or_evaluate(cfg, args)
    if comm.is_main_process() and results is not None:  # None: already trained and evaluated
        verify_results(cfg, results)  # TEST.EXPECTED_RESULTS
    return results


if __name__ == "__main__":
    with errors_in_one_line():
        launch(main, build_parser().parse_args())
