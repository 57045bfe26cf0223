from __future__ import annotations

import re

from s2uniseg_d2.engine.comparison import picture_name


def test_a_picture_is_named_after_its_data_set():
    assert re.fullmatch(r"scenes-val-[0-9a-f]{8}", picture_name("scenes:output/scenes/val"))
    assert re.fullmatch(r"coco-images-[0-9a-f]{8}", picture_name("coco:a/b.json:../c d/images"))
    assert re.fullmatch(r"coco-2017-val-[0-9a-f]{8}", picture_name("coco_2017_val"))
    assert picture_name("folder:a/x") != picture_name("folder:b/x")
