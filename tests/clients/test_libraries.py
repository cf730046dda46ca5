"""Other libraries for Detectron2's models, where they are installed; none is a requirement.

pip install supervision sahi
"""

import pytest
from detectron2.engine import DefaultPredictor

from instancezoo.testing import make_image

SIZE = 64


@pytest.fixture
def image():
    return make_image(SIZE, SIZE).permute(1, 2, 0).numpy()


def test_supervision_reads_and_draws_the_outputs(client_cfg, image):
    supervision = pytest.importorskip("supervision", reason="supervision is not installed")
    outputs = DefaultPredictor(client_cfg)(image)
    found = supervision.Detections.from_detectron2(outputs)
    instances = outputs["instances"]
    assert len(found) == len(instances) > 0
    if instances.has("pred_masks"):
        assert found.mask.shape == (len(found), SIZE, SIZE) and found.mask.dtype == bool
        supervision.MaskAnnotator().annotate(image.copy(), found)
    supervision.BoxAnnotator().annotate(image.copy(), found)


def test_sahi_predicts_on_slices(client_cfg, run_folder, image):
    pytest.importorskip("sahi", reason="sahi is not installed")
    from sahi import AutoDetectionModel
    from sahi.predict import get_sliced_prediction

    names = {str(index): name for index, name in enumerate("abcd")}
    model = AutoDetectionModel.from_pretrained(
        model_type="detectron2",
        model_path=client_cfg.MODEL.WEIGHTS,
        config_path=str(run_folder / "config.yaml"),
        confidence_threshold=0.0,
        category_mapping=names,
        device="cpu",
    )
    result = get_sliced_prediction(image, model, slice_height=48, slice_width=48, verbose=0)
    assert result.object_prediction_list
