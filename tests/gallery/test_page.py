"""The page, as text and in a real browser."""

from __future__ import annotations

import html
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from s2uniseg_d2.engine.drawing import palette
from s2uniseg_d2.gallery.page import PageFacts, make_card, write_page

ALL = ("instance", "semantic", "panoptic")
# each would run if it stood in the page as it is: as an element, out of an attribute, out of the script's data
EXPLOITS = {
    "element": "<img src=x onerror=\"document.title='run'\">.png",
    "attribute": '"><img src=x onerror="document.title=\'run\'">.png',
    "attribute_alone": 'x" onfocus="document.title=\'run\'" autofocus="',
    "apostrophe": "'><svg onload=document.title='run'>.png",
    "script": "</script><script>document.title='run'</script>.png",
    "comment": "--><script>document.title='run'</script><!--",
    "entity": "&lt;script&gt;document.title='run'&lt;/script&gt;",
    "template": "$script ${meta} $$",
}
NASTY = '<img src=x onerror="alert(1)">&\'</script>\udcff.png'


class Elements(HTMLParser):
    """Names and attributes of all elements of a page, and the texts of some."""

    def __init__(self, text):
        super().__init__()
        self.found, self.open, self.texts = [], [], {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, tuple(name for name, _ in attributes)))
        self.open.append(tag)
        self.labels = getattr(self, "labels", []) + [value for name, value in attributes if name == "aria-label"]

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        for tag in self.open[-1:]:
            self.texts.setdefault(tag, []).append(data)


def cards_of(found, picture, names=("a.png", "b.png"), kinds=ALL):
    return [make_card(name, picture, found, kinds, 0.25) for name in names]


def facts(floor=0.5, skipped=()):
    return PageFacts("Masks & more", ["2 pictures."], floor, skipped)


@pytest.fixture
def page(tmp_path, found, picture):
    path = tmp_path / "index.html"
    write_page(path, cards_of(found, picture), facts())
    return path


@pytest.fixture
def levelled(tmp_path, found, picture):
    """A page whose instances have levels: small ones 0, the large one 1."""
    instances = found.instances[:]
    instances.levels = torch.tensor([0, 1, 0])
    path = tmp_path / "levels.html"
    write_page(path, cards_of(found._replace(instances=instances), picture, ["a.png"], ("instance",)), facts(0.0))
    return path


def shown(dom):
    return int(re.search(r'id="count"[^>]*data-shown="(\d+)"', dom)[1])


class TestText:
    def test_nothing_is_fetched(self, page):
        text = page.read_text()
        assert "http:" not in text
        assert "https:" not in text
        assert not re.search(r"<(link|script|img)[^>]+(src|href)=\"(?!data:)", text)
        assert "default-src 'none'" in text

    def test_names_are_text(self, tmp_path, found, picture):
        write_page(tmp_path / "x.html", cards_of(found, picture, [NASTY]), facts(skipped=[(NASTY, f"bad {NASTY}")]))
        text = (tmp_path / "x.html").read_text(encoding="utf-8")
        assert "<img src=x" not in text
        assert text.count("</script>") == 3  # of the page's facts, of the picture's part, of the script itself
        assert html.escape(NASTY.replace("\udcff", "?")) in text

    @pytest.mark.parametrize("kind", EXPLOITS)
    def test_exploits_make_no_element_and_no_attribute(self, tmp_path, found, picture, kind):
        def parse(name):
            given = PageFacts(name, [name], 0.5, [(name, f"cannot read {name}")])
            write_page(tmp_path / "x.html", cards_of(found, picture, [name]), given)
            return Elements((tmp_path / "x.html").read_text(encoding="utf-8"))

        page, plain, name = parse(EXPLOITS[kind]), parse("plain"), EXPLOITS[kind]
        assert page.found == plain.found
        assert page.texts["title"] == [name]
        assert page.texts["b"][0] == name
        assert page.texts["li"] == [f"cannot read {name}"]
        assert f"Masks of {name}" in page.labels
        assert json.loads(page.texts["script"][0])["pictures"][0]["name"] == name

    def test_masks_stand_in_it_with_all_that_is_known_of_them(self, page, found):
        meta = json.loads(re.search(r'id="meta">(.*?)</script>', page.read_text())[1])
        instance = meta["pictures"][0]["masks"]["instance"]
        assert instance["cluster"] == [3, 1, 3]
        assert instance["score"] == pytest.approx([0.9, 0.8, 0.6])
        assert instance["share"] == pytest.approx([25 / 600, 224 / 600, 96 / 600], abs=1e-5)
        assert meta["pictures"][0]["masks"]["panoptic"]["thing"] == [1, 0]
        assert meta["pictures"][0]["masks"]["semantic"]["cluster"] == [1, 3]
        assert meta["colours"]["3"] == "#" + bytes(palette([3])[0]).hex()
        assert meta["levels"] == {"instance": 0, "semantic": 0, "panoptic": 0}

    def test_large_pictures_are_embedded_small(self, found):
        big = found._replace(
            instances=found.instances[found.instances.scores > 1],
            semantic=torch.full((3000, 2000), 5),
            panoptic=torch.zeros(3000, 2000, dtype=torch.int32),
            segments=[],
        )
        big.instances.pred_masks = torch.zeros(0, 3000, 2000, dtype=torch.bool)
        noise = np.random.default_rng(0).integers(0, 256, (3000, 2000, 3), dtype=np.uint8)
        card = make_card("x.png", noise, big, ALL, 0.1)
        assert card.about["page"] == {"width": 427, "height": 640}
        assert len(card.part) < 300_000


class TestBrowser:
    def test_the_script_counts_and_the_hash_moves_the_sliders(self, page, browse):
        dom = browse(page)
        assert 'data-ready="yes"' in dom
        assert shown(dom) == 6
        assert shown(browse(page, "score=0.7")) == 4
        assert shown(browse(page, "kind=panoptic&score=0.7")) == 2
        assert shown(browse(page, "grain=8")) == 4  # from 6 % of the picture on
        assert shown(browse(page, "score=nonsense&grain=99&kind=none")) == 2  # a wrong word is none, 99 is the last

    def test_levels_are_cut_by_the_slider(self, levelled, browse):
        assert shown(browse(levelled, "grain=2")) == 3
        assert shown(browse(levelled, "grain=1")) == 2

    def test_masks_are_painted_over_the_picture(self, tmp_path, levelled, page, found, browse):
        # full tint and no lines: a mask's pixels have the colour of its cluster
        colours = self.painted(browse, page, tmp_path, "tint=100&lines=0")
        assert {1, 3} <= colours
        # masks 0, 1 and 2 in colours of their own: none has that of number 3
        assert self.painted(browse, page, tmp_path, "tint=100&lines=0&own=1") == {1}
        assert 3 not in self.painted(browse, page, tmp_path, "tint=100&lines=0&grain=9&kind=panoptic&score=0.7")
        # with the coarse level on top, cluster 1 hides the small mask of cluster 3 inside of it; the other one stays
        both = self.amount(browse, levelled, tmp_path, "tint=100&lines=0&grain=2")
        fine = self.amount(browse, levelled, tmp_path, "tint=100&lines=0&grain=1")
        assert both[1] > 0 == fine[1]
        assert fine[3] > 1.15 * both[3] > 0

    def test_nasty_names_do_no_harm(self, tmp_path, found, picture, browse):
        write_page(tmp_path / "x.html", cards_of(found, picture, [NASTY]), facts(skipped=[(NASTY, NASTY)]))
        dom = browse(tmp_path / "x.html")
        assert 'data-ready="yes"' in dom
        assert shown(dom) == 3

    def test_exploits_run_nothing_even_without_the_policy(self, tmp_path, found, picture, browse):
        names = list(EXPLOITS.values())
        given = PageFacts("untouched", names, 0.5, [(name, name) for name in names])
        write_page(tmp_path / "x.html", cards_of(found, picture, names), given)
        text = (tmp_path / "x.html").read_text(encoding="utf-8")
        policy = re.search(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>", text)[0]
        (tmp_path / "open.html").write_text(text.replace(policy, ""), encoding="utf-8")
        dom = browse(tmp_path / "open.html")
        assert 'data-ready="yes"' in dom
        assert "<title>untouched</title>" in dom
        # the same name, not made text, does run: the exploits are real, and the policy stops them as well
        bad = text.replace("<body>", f"<body>{EXPLOITS['script']}{EXPLOITS['element']}", 1)
        (tmp_path / "bad.html").write_text(bad, encoding="utf-8")
        assert "<title>untouched</title>" in browse(tmp_path / "bad.html")
        (tmp_path / "bad.html").write_text(bad.replace(policy, ""), encoding="utf-8")
        assert "<title>run</title>" in browse(tmp_path / "bad.html")

    def test_many_pictures_are_painted_when_they_are_seen(self, tmp_path, found, picture, browse):
        write_page(tmp_path / "x.html", cards_of(found, picture, [f"{i}.png" for i in range(300)]), facts())
        dom = browse(tmp_path / "x.html")
        assert shown(dom) == 900
        loaded = dom.count('src="data:image/jpeg')
        assert 0 < loaded < 150

    def amount(self, browse, page, tmp_path, fragment):
        """Pixels of a screenshot in the colours of clusters 1 and 3."""
        browse(page, fragment, screenshot=tmp_path / "shot.png")
        with Image.open(tmp_path / "shot.png") as image:
            pixels = np.asarray(image.convert("RGB")).astype(int)
        return {k: int((np.abs(pixels - palette([k])[0]).max(axis=2) <= 2).sum()) for k in (1, 3)}

    def painted(self, browse, page, tmp_path, fragment):
        return {cluster for cluster, count in self.amount(browse, page, tmp_path, fragment).items() if count > 500}
