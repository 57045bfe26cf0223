"""Panoptic quality with explicit boolean masks, one pair at a time, straight from the published rules."""

from __future__ import annotations

from collections import defaultdict


def slow_panoptic_quality(pictures, categories):  # noqa: C901 - one long list of rules, on purpose
    """PQ, SQ, RQ per group of ``categories`` ({id: isthing}); a picture is (map, segments, and both of the truth)."""
    tp, fp, fn, iou_sum = (defaultdict(float) for _ in range(4))
    for predicted_map, predicted, truth_map, truth in pictures:
        void = truth_map == 0
        used_truth, used_predicted = [], []
        for t in truth:
            for p in predicted:
                if t.get("iscrowd") or t["category_id"] != p["category_id"]:
                    continue
                mask_t, mask_p = truth_map == t["id"], predicted_map == p["id"]
                intersection = (mask_t & mask_p).sum()
                union = (mask_t | (mask_p & ~void)).sum()
                if intersection / union > 0.5:
                    used_truth.append(t["id"])
                    used_predicted.append(p["id"])
                    tp[t["category_id"]] += 1
                    iou_sum[t["category_id"]] += intersection / union
        for t in truth:
            if t["id"] not in used_truth and not t.get("iscrowd"):
                fn[t["category_id"]] += 1
        for p in predicted:
            if p["id"] in used_predicted:
                continue
            mask_p = predicted_map == p["id"]
            excused = void.copy()
            crowds = [t for t in truth if t.get("iscrowd") and t["category_id"] == p["category_id"]]
            if crowds:
                excused |= truth_map == crowds[-1]["id"]
            if (mask_p & excused).sum() / mask_p.sum() > 0.5:
                continue
            fp[p["category_id"]] += 1
    groups = {"All": (0, 1), "Things": (1,), "Stuff": (0,)}
    result = {}
    for group, kinds in groups.items():
        rows = []
        for category, is_thing in categories.items():
            n, i = tp[category] + fp[category] / 2 + fn[category] / 2, iou_sum[category]
            if is_thing in kinds and tp[category] + fp[category] + fn[category] > 0:
                rows.append((i / n, i / tp[category] if tp[category] else 0.0, tp[category] / n))
        result[group] = tuple(sum(column) / len(rows) for column in zip(*rows, strict=True)) if rows else None
    return result
