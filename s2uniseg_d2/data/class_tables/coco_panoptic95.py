"""COCO panoptic's 53 stuff classes in 15 supercategories, beside its 80 things."""

from __future__ import annotations

from typing import Any

# U2Seg's order (datasets/prepare_ours/get_panoptic_anns_supercategory.py), which also names COCO's supercategories.
PANOPTIC15: dict[str, tuple[int, ...]] = {
    "textile": (92, 93, 109, 141, 168, 200),
    "building": (95, 128, 151, 166, 197),
    "raw-material": (100, 195),
    "furniture-stuff": (107, 112, 130, 133, 156, 161, 188, 189),
    "floor": (118, 190),
    "plant": (119, 184, 193),
    "food-stuff": (122, 196),
    "ground": (125, 144, 145, 147, 149, 154, 159, 191, 194),
    "structural": (138, 185),
    "water": (148, 155, 178),
    "wall": (171, 175, 176, 177, 199),
    "window": (180, 181),
    "ceiling": (186,),
    "sky": (187,),
    "solid": (192, 198),
}
PANOPTIC15_FIRST_ID = 201  # COCO's own ids end at 200, so the two never meet


def panoptic95_category_of(categories: list[dict[str, Any]]) -> dict[int, int]:
    """Return the category id that each of COCO panoptic's 133 becomes: things their own, stuff its supercategory's.

    Raises:
        ValueError: unless the categories are COCO's, each stuff one of the supercategory that the table gives it.
    """
    table = {fine: (PANOPTIC15_FIRST_ID + i, name) for i, (name, ids) in enumerate(PANOPTIC15.items()) for fine in ids}
    stuff = {category["id"]: category for category in categories if not category["isthing"]}
    num_things = len(categories) - len(stuff)
    if stuff.keys() != table.keys() or num_things != 80:
        raise ValueError(
            f"categories must be COCO panoptic's 80 things and 53 stuff classes, got {num_things} and {len(stuff)}, "
            f"with stuff ids {sorted(stuff.keys() ^ table.keys())} on one side only"
        )
    for fine, category in stuff.items():
        if category.get("supercategory", table[fine][1]) != table[fine][1]:
            raise ValueError(
                f"category {fine} ({category['name']}) must be of supercategory {table[fine][1]}, "
                f"got {category['supercategory']}"
            )
    own = {category["id"]: category["id"] for category in categories if category["isthing"]}
    return own | {fine: category for fine, (category, _) in table.items()}
