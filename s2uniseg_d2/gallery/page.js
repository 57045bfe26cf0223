"use strict";
const byId = id => document.getElementById(id);
const meta = JSON.parse(byId("meta").textContent);
const stages = [...document.querySelectorAll("article .stage")];
const first = meta.kinds.find(kind => meta.pictures.some(picture => picture.masks[kind].cluster.length)) || meta.kinds[0];
const state = { kind: first, grain: {}, score: meta.floor, tint: 45, lines: true, own: false };
// smallest share of the picture's area at each place of the granularity slider, for masks without levels
const SHARES = [0, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.03, 0.06, 0.12, 0.25];
const levelsOf = kind => meta.levels[kind] || 0;
for (const kind of meta.kinds) state.grain[kind] = levelsOf(kind) ? Math.ceil(levelsOf(kind) / 2) : 0;

// --- what is shown ---
function isShown(masks, k, kind) {
  const level = levelsOf(kind), grain = state.grain[kind];
  if (masks.score && masks.score[k] < state.score) return false;
  return level ? masks.level[k] < grain : masks.share[k] >= SHARES[grain];
}
// From bottom to top: levels from fine to coarse, so that the slider cuts their tree; other masks from large to small.
function shownMasks(number) {
  const kind = state.kind, masks = meta.pictures[number].masks[kind];
  const places = masks.cluster.map((_, k) => k).filter(k => isShown(masks, k, kind));
  const by = levelsOf(kind) ? (a, b) => masks.level[a] - masks.level[b] : (a, b) => masks.share[b] - masks.share[a];
  return places.sort((a, b) => by(a, b) || a - b);
}

// --- pictures and masks, parsed when first needed ---
const parts = new Map();
function part(number) {
  if (!parts.has(number)) parts.set(number, { ...JSON.parse(byId("part-" + number).textContent), runs: {} });
  return parts.get(number);
}
// COCO's run lengths: letters of five bits and one that says whether more follow; from the fourth on, differences.
function decodeRuns(text) {
  const runs = [];
  for (let p = 0; p < text.length;) {
    let value = 0, shift = 0, letter;
    do {
      letter = text.charCodeAt(p++) - 48;
      value |= (letter & 31) << shift;
      shift += 5;
    } while (letter & 32);
    if (letter & 16) value |= -1 << shift;
    if (runs.length > 2) value += runs[runs.length - 2];
    runs.push(value);
  }
  return runs;
}
function runsOf(number, kind, k) {
  const own = part(number), cache = own.runs[kind] ||= [];
  return cache[k] ||= decodeRuns(own.masks[kind][k]);
}
function hexOf(masks, k) {
  return state.own ? meta.own[k % meta.own.length] : meta.colours[masks.cluster[k]];
}
function colourOf(masks, k) {
  return [1, 3, 5].map(i => parseInt(hexOf(masks, k).slice(i, i + 2), 16));
}

// --- painting: which mask is on top at every pixel, down the columns, then tint and outline ---
function indexMap(number, order) {
  const { width, height } = meta.pictures[number].page;
  const map = new Int16Array(width * height).fill(-1);
  for (const k of order) {
    let at = 0, inside = false;
    for (const run of runsOf(number, state.kind, k)) {
      if (inside) map.fill(k, at, at + run);
      at += run;
      inside = !inside;
    }
  }
  return map;
}
function paint(stage, number, order) {
  const { width, height } = meta.pictures[number].page, canvas = stage.querySelector("canvas");
  const map = indexMap(number, order), masks = meta.pictures[number].masks[state.kind];
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d"), image = context.createImageData(width, height), data = image.data;
  const colours = new Map(order.map(k => [k, colourOf(masks, k)])), alpha = Math.round(state.tint * 2.55);
  for (let x = 0; x < width; x++) {
    for (let y = 0; y < height; y++) {
      const i = x * height + y, k = map[i];
      if (k < 0) continue;
      const isEdge = state.lines && ((x + 1 < width && map[i + height] !== k) || (y + 1 < height && map[i + 1] !== k) ||
        (x > 0 && map[i - height] < 0) || (y > 0 && map[i - 1] < 0));
      const colour = colours.get(k), o = 4 * (y * width + x);
      for (let c = 0; c < 3; c++) data[o + c] = isEdge ? 0.5 * colour[c] + 127 : colour[c];
      data[o + 3] = isEdge ? 235 : alpha;
    }
  }
  context.putImageData(image, 0, 0);
  stage.map = map;
}
function describe(number, k) {
  const kind = state.kind, masks = meta.pictures[number].masks[kind], words = ["cluster " + masks.cluster[k]];
  if (masks.thing) words.push(masks.thing[k] ? "thing" : "stuff");
  if (masks.score) words.push("score " + masks.score[k].toFixed(2));
  if (levelsOf(kind)) words.push("level " + (masks.level[k] + 1));
  words.push((100 * masks.share[k]).toFixed(1) + "\u00a0%");
  return words.join(" · ");
}

// --- cards: painted when they come near the window, again after a change, let go when far away ---
const near = new Set();
function refresh(stage) {
  const number = stages.indexOf(stage);
  stage.querySelector("img").src ||= part(number).picture;
  paint(stage, number, shownMasks(number));
}
const watcher = new IntersectionObserver(entries => {
  for (const { target, isIntersecting } of entries) {
    if (isIntersecting) {
      near.add(target);
      refresh(target);
    } else if (near.delete(target)) {
      target.map = null;
      target.querySelector("canvas").width = 0;
    }
  }
}, { rootMargin: "400px" });
function showHere(event) {
  const stage = event.currentTarget, number = stages.indexOf(stage);
  const here = stage.parentElement.querySelector(".here"), { width, height } = meta.pictures[number].page;
  const box = stage.getBoundingClientRect();
  const x = Math.floor((event.clientX - box.left) / box.width * width);
  const y = Math.floor((event.clientY - box.top) / box.height * height);
  const k = stage.map && x >= 0 && y >= 0 && x < width && y < height ? stage.map[x * height + y] : -1;
  here.textContent = k < 0 ? "" : describe(number, k);
}
stages.forEach((stage, number) => {
  watcher.observe(stage);
  stage.addEventListener("pointermove", showHere);
  stage.addEventListener("pointerleave", () => { stage.parentElement.querySelector(".here").textContent = ""; });
  stage.addEventListener("click", () => openDetail(number));
});

// --- controls ---
function update() {
  const levels = levelsOf(state.kind), grain = state.grain[state.kind], slider = byId("grain");
  slider.min = levels ? 1 : 0;
  slider.max = levels || SHARES.length - 1;
  slider.value = grain;
  byId("grain-text").value = levels ? `level ${grain} of ${levels}` : grain ? `from ${100 * SHARES[grain]} % of a picture` : "all sizes";
  slider.setAttribute("aria-valuetext", byId("grain-text").value);
  byId("score").disabled = !meta.pictures.some(picture => picture.masks[state.kind].score);
  byId("score").min = meta.floor;
  byId("score").max = 1;
  byId("score").value = state.score;
  byId("score-text").value = state.score.toFixed(2);
  byId("tint").value = state.tint;
  byId("tint-text").value = state.tint + " %";
  byId("lines").checked = state.lines;
  byId("own").checked = state.own;
  for (const radio of byId("kinds").querySelectorAll("input")) radio.checked = radio.value === state.kind;
  let shown = 0, all = 0;
  meta.pictures.forEach((picture, number) => {
    const masks = picture.masks[state.kind], count = masks.cluster.filter((_, k) => isShown(masks, k, state.kind)).length;
    stages[number].parentElement.querySelector(".masks").textContent = `${count} of ${masks.cluster.length} masks`;
    shown += count;
    all += masks.cluster.length;
  });
  byId("count").value = `${shown.toLocaleString("en")} of ${all.toLocaleString("en")} masks shown`;
  byId("count").dataset.shown = shown;
  near.forEach(refresh);
  if (detail.open) fillDetail();
  const words = new URLSearchParams({ kind: state.kind, grain, score: state.score, tint: state.tint, lines: +state.lines, own: +state.own });
  history.replaceState(null, "", "#" + words);
}
function readHash() {
  const words = new URLSearchParams(location.hash.slice(1));
  const number = (name, low, high, old) => {
    const value = words.has(name) ? Number(words.get(name)) : NaN;
    return Number.isFinite(value) ? Math.min(high, Math.max(low, value)) : old;
  };
  if (meta.kinds.includes(words.get("kind"))) state.kind = words.get("kind");
  const levels = levelsOf(state.kind);
  state.grain[state.kind] = Math.round(number("grain", levels ? 1 : 0, levels || SHARES.length - 1, state.grain[state.kind]));
  state.score = number("score", meta.floor, 1, state.score);
  state.tint = number("tint", 0, 100, state.tint);
  state.lines = number("lines", 0, 1, +state.lines) > 0;
  state.own = number("own", 0, 1, +state.own) > 0;
}
for (const kind of meta.kinds) {
  const label = document.createElement("label"), radio = document.createElement("input");
  Object.assign(radio, { type: "radio", name: "kind", value: kind });
  radio.addEventListener("change", () => { state.kind = kind; update(); });
  label.append(radio, kind);
  byId("kinds").append(label);
}
byId("grain").addEventListener("input", event => { state.grain[state.kind] = +event.target.value; update(); });
byId("score").addEventListener("input", event => { state.score = +event.target.value; update(); });
byId("tint").addEventListener("input", event => { state.tint = +event.target.value; update(); });
byId("lines").addEventListener("change", event => { state.lines = event.target.checked; update(); });
byId("own").addEventListener("change", event => { state.own = event.target.checked; update(); });
byId("controls").addEventListener("submit", event => event.preventDefault());
addEventListener("hashchange", () => { readHash(); update(); });

// --- one picture and its masks ---
const detail = byId("detail"), bigStage = detail.querySelector(".stage");
let current = 0;
function openDetail(number) {
  current = (number + stages.length) % stages.length;
  if (!detail.open) detail.showModal();
  fillDetail();
}
function fillDetail() {
  const picture = meta.pictures[current], { width, height } = picture.page, order = shownMasks(current);
  byId("detail-name").textContent = `${picture.name} · ${picture.width} × ${picture.height}`;
  bigStage.style.aspectRatio = `${width} / ${height}`;
  bigStage.style.width = `min(100%, 82vh * ${width / height})`;
  bigStage.querySelector("img").src = part(current).picture;
  const whole = () => paint(bigStage, current, order);
  whole();
  const masks = picture.masks[state.kind], scores = masks.score || masks.share;
  const items = [...order].sort((a, b) => scores[b] - scores[a]).map(k => {
    const item = document.createElement("li"), button = document.createElement("button"), chip = document.createElement("i");
    button.type = "button";
    chip.style.background = hexOf(masks, k);
    button.append(chip, describe(current, k));
    for (const name of ["focus", "pointerenter"]) button.addEventListener(name, () => paint(bigStage, current, [k]));
    for (const name of ["blur", "pointerleave"]) button.addEventListener(name, whole);
    item.append(button);
    return item;
  });
  byId("masks").replaceChildren(...items);
}
byId("close").addEventListener("click", () => detail.close());
byId("before").addEventListener("click", () => openDetail(current - 1));
byId("next").addEventListener("click", () => openDetail(current + 1));
detail.addEventListener("close", () => stages[current].focus());
addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const isSlider = event.target.type === "range" || event.target.type === "radio";
  if (detail.open && !isSlider && (event.key === "ArrowLeft" || event.key === "ArrowRight")) openDetail(current + (event.key === "ArrowLeft" ? -1 : 1));
  else if (meta.kinds[event.key - 1]) { state.kind = meta.kinds[event.key - 1]; update(); }
  else if (event.key === "g" && !detail.open) byId("grain").focus();
  else if (event.key === "s" && !detail.open) byId("score").focus();
  else if (event.key === "h") document.body.classList.add("bare");
});
addEventListener("keyup", event => { if (event.key === "h") document.body.classList.remove("bare"); });
readHash();
// what is in view at once, without waiting for the browser to say so
for (const stage of stages) {
  if (stage.parentElement.getBoundingClientRect().top > innerHeight) break;
  near.add(stage);
}
update();
document.body.dataset.ready = "yes";
