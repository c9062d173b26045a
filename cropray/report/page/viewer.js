// The map of the page on a canvas: layers, legend, reading of a pixel, zoom by wheel, keys, buttons and fingers.
// `data` and `words` come from the page; positions are pixels of the full map, x to the east, y to the south.
"use strict";
const page = JSON.parse(document.getElementById("data").textContent);
const { data, words, names } = page;
const find = (selector) => document.querySelector(selector);
const all = (selector) => [...document.querySelectorAll(selector)];
const locale = document.documentElement.lang;
const decimals = (value, digits = 0) =>
  value.toLocaleString(locale, { minimumFractionDigits: digits, maximumFractionDigits: digits });
const element = (tag, attributes = {}, ...children) => {
  const made = Object.assign(document.createElement(tag), attributes);
  made.append(...children);
  return made;
};
const swatch = (value) => {
  const made = element("span", { className: "swatch" });
  made.style.background = data.colours[value] ?? "#fff";
  return made;
};

const canvas = find("#map");
const ink = canvas.getContext("2d");
const MARGIN = { left: 52, right: 6, top: 6, bottom: 24 };
const INK = "#1b2622";
const NONE = names.length - 1; // the last class is none of the classes
const FADED = [236, 238, 237];
const RAMP = [
  [0, "#00204d"], [30, "#414d6b"], [50, "#7c7b78"], [70, "#bcaf6f"], [90, "#ffea46"],
]; // cividis
const MANY = 10; // classes beyond these are outlined: their colours are too near
const MOST = 64; // times that the map is enlarged

const view = { layer: "crop", only: -1, month: 0, zoom: 1, x: 0, y: 0, field: null, pixel: null };
const layers = {};
let unit = 1; // CSS pixels of a pixel of the map at zoom 1
let width = 0;
let height = 0;

// --- layers -----------------------------------------------------------------------------------------------

const picture = (base64, kind) =>
  new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = reject;
    image.src = `data:image/${kind};base64,${base64}`;
  });

function sheet(columns, rows) {
  return Object.assign(document.createElement("canvas"), { width: columns, height: rows });
}

// The bytes of a grey PNG.
async function bytes(layer) {
  const image = await picture(layer.png, "png");
  const context = sheet(layer.width, layer.height).getContext("2d", { willReadFrequently: true });
  context.canvas.width = layer.width;
  context.drawImage(image, 0, 0);
  const pixels = new Uint32Array(context.getImageData(0, 0, layer.width, layer.height).data.buffer);
  const values = new Uint8Array(pixels.length);
  for (let i = 0; i < values.length; i++) values[i] = pixels[i] & 255;
  return { ...layer, values };
}

const rgb = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
const packed = ([red, green, blue]) => (255 << 24) | (blue << 16) | (green << 8) | red;

function painted(layer, table, outlined = false) {
  const made = sheet(layer.width, layer.height);
  const context = made.getContext("2d");
  const image = context.createImageData(layer.width, layer.height);
  const out = new Uint32Array(image.data.buffer);
  const { values } = layer;
  const dark = packed(rgb(INK));
  for (let i = 0; i < out.length; i++) {
    const edge = outlined && (values[i] !== values[i + 1] || values[i] !== values[i + layer.width]);
    out[i] = edge ? dark : table[values[i]];
  }
  context.putImageData(image, 0, 0);
  return made;
}

function paintCrops() {
  const table = new Uint32Array(256).fill(packed([255, 255, 255]));
  data.colours.forEach((colour, value) => {
    table[value] = packed(view.only < 0 || view.only === value ? rgb(colour) : FADED);
  });
  layers.crop.image = painted(layers.crop, table, names.length > MANY);
}

function paintConfidence() {
  const table = new Uint32Array(256).fill(packed([255, 255, 255]));
  for (let value = 0; value <= 100; value++) {
    table[value] = packed(rgb(RAMP.filter((step) => step[0] <= value).pop()[1]));
  }
  layers.confidence.image = painted(layers.confidence, table);
}

// The value of a layer at a pixel of the map.
function valueAt(layer, x, y, plane = 0, planes = 1) {
  const rows = layer.height / planes;
  const column = Math.min(layer.width - 1, Math.floor((x / data.width) * layer.width));
  const row = Math.min(rows - 1, Math.floor((y / data.height) * rows));
  return layer.values[(plane * rows + row) * layer.width + column];
}

// --- positions --------------------------------------------------------------------------------------------

const screenX = (x) => MARGIN.left + (x - view.x) * unit * view.zoom;
const screenY = (y) => MARGIN.top + (y - view.y) * unit * view.zoom;

function position(event) {
  const box = canvas.getBoundingClientRect();
  const scale = width / box.width;
  return [
    ((event.clientX - box.left) * scale - MARGIN.left) / unit / view.zoom + view.x,
    ((event.clientY - box.top) * scale - MARGIN.top) / unit / view.zoom + view.y,
  ];
}

// Longitude (0) or latitude (1) of a position, from the lattice of the page.
function degrees(kind, x, y) {
  const lattice = data.degrees[kind];
  const steps = lattice.length - 1;
  const [column, row] = [(x / data.width) * steps, (y / data.height) * steps];
  const [j, i] = [Math.max(0, Math.min(steps - 1, Math.floor(column))), Math.max(0, Math.min(steps - 1, Math.floor(row)))];
  const [u, v] = [column - j, row - i];
  const above = lattice[i][j] * (1 - u) + lattice[i][j + 1] * u;
  const below = lattice[i + 1][j] * (1 - u) + lattice[i + 1][j + 1] * u;
  return above * (1 - v) + below * v;
}

function inDegrees(value, kind, digits) {
  const wrapped = kind === 0 ? ((value + 540) % 360) - 180 : value;
  const side = kind === 0 ? (wrapped < 0 ? words.west : words.east) : wrapped < 0 ? words.south : words.north;
  return `${decimals(Math.abs(wrapped), digits)}° ${side}`;
}

function bounded() {
  view.zoom = Math.min(MOST, Math.max(1, view.zoom));
  view.x = Math.min(data.width - data.width / view.zoom, Math.max(0, view.x));
  view.y = Math.min(data.height - data.height / view.zoom, Math.max(0, view.y));
  canvas.classList.toggle("zoomed", view.zoom > 1);
}

function zoomBy(factor, x = view.x + data.width / view.zoom / 2, y = view.y + data.height / view.zoom / 2) {
  const before = view.zoom;
  view.zoom = Math.min(MOST, Math.max(1, before * factor));
  view.x = x - ((x - view.x) * before) / view.zoom;
  view.y = y - ((y - view.y) * before) / view.zoom;
  draw();
}

// --- drawing ----------------------------------------------------------------------------------------------

function outline(points, closed) {
  ink.beginPath();
  points.forEach(([x, y], i) => (i ? ink.lineTo(screenX(x), screenY(y)) : ink.moveTo(screenX(x), screenY(y))));
  if (closed) ink.closePath();
}

function stroke(points, colour, thickness, closed = true) {
  outline(points, closed);
  ink.lineWidth = thickness + 2;
  ink.strokeStyle = "#fff";
  ink.stroke();
  ink.lineWidth = thickness;
  ink.strokeStyle = colour;
  ink.stroke();
}

const roundBelow = (value) => {
  const power = 10 ** Math.floor(Math.log10(value));
  return [5, 2, 1].find((factor) => factor * power <= value * (1 + 1e-9)) * power;
};

function drawGraticule(labels) {
  const [right, bottom] = [view.x + data.width / view.zoom, view.y + data.height / view.zoom];
  for (const kind of [0, 1]) {
    const corners = [[view.x, view.y], [right, view.y], [view.x, bottom], [right, bottom]];
    const values = corners.map(([x, y]) => degrees(kind, x, y));
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const step = roundBelow((high - low) / 3);
    const digits = Math.max(0, -Math.floor(Math.log10(step)));
    for (let value = Math.ceil(low / step) * step; value <= high; value += step) {
      const points = [];
      for (let i = 0; i <= 24; i++) {
        const t = i / 24;
        const along = kind === 0 ? view.y + t * (bottom - view.y) : view.x + t * (right - view.x);
        const at = (across) => (kind === 0 ? degrees(0, across, along) : degrees(1, along, across));
        let [from, to] = kind === 0 ? [view.x, right] : [view.y, bottom];
        const rising = at(to) > at(from);
        if ((at(from) - value) * (at(to) - value) > 0) continue;
        for (let n = 0; n < 30; n++) {
          const middle = (from + to) / 2;
          if (at(middle) < value === rising) from = middle;
          else to = middle;
        }
        points.push(kind === 0 ? [from, along] : [along, from]);
      }
      if (points.length < 2) continue;
      if (!labels) {
        outline(points, false);
        ink.lineWidth = 0.7;
        ink.strokeStyle = "#1b262259";
        ink.stroke();
        continue;
      }
      const [x, y] = kind === 0 ? points[points.length - 1] : points[0];
      ink.textAlign = kind === 0 ? "center" : "right";
      const text = inDegrees(value, kind, digits);
      if (kind === 0 && screenX(x) > MARGIN.left + 24 && screenX(x) < width - 30) ink.fillText(text, screenX(x), height - 8);
      if (kind === 1 && screenY(y) > 14 && screenY(y) < height - MARGIN.bottom - 4) {
        ink.save();
        ink.translate(MARGIN.left - 8, screenY(y));
        ink.rotate(-Math.PI / 2);
        ink.textAlign = "center";
        ink.fillText(text, 0, 0);
        ink.restore();
      }
    }
  }
}

function drawScale() {
  const pixel = unit * view.zoom;
  const metres = roundBelow((data.metres * width * 0.28) / pixel);
  const length = (metres / data.metres) * pixel;
  const [x, y] = [MARGIN.left + 14, height - MARGIN.bottom - 14];
  ink.fillStyle = "#ffffffe6";
  ink.fillRect(x - 8, y - 22, length + 60, 34);
  ink.fillStyle = INK;
  ink.fillRect(x, y, length / 2, 5);
  ink.lineWidth = 1;
  ink.strokeStyle = INK;
  ink.strokeRect(x, y, length, 5);
  ink.textAlign = "left";
  ink.fillText(decimals(0), x - 2, y - 5);
  const far = metres >= 1000 ? `${decimals(metres / 1000)} ${words.km}` : `${decimals(metres)} ${words.m}`;
  ink.fillText(far, x + length - 8, y - 5);
}

function drawNorth() {
  const [x, y] = [MARGIN.left + 24, MARGIN.top + 14];
  ink.fillStyle = "#ffffffe6";
  ink.beginPath();
  ink.arc(x, y + 14, 21, 0, 7);
  ink.fill();
  ink.fillStyle = INK;
  ink.beginPath();
  [[0, -1], [7, 17], [0, 13], [-7, 17]].forEach(([dx, dy], i) => (i ? ink.lineTo(x + dx, y + dy) : ink.moveTo(x + dx, y + dy)));
  ink.closePath();
  ink.fill();
  ink.textAlign = "center";
  ink.fillText("N", x, y + 29);
}

const shown = (name) => find(`#show-${name}`)?.checked;

function draw() {
  if (!layers.crop) return;
  bounded();
  ink.clearRect(0, 0, width, height);
  ink.save();
  ink.beginPath();
  ink.rect(MARGIN.left, MARGIN.top, data.width * unit, data.height * unit);
  ink.clip();
  const image = view.layer === "months" ? layers.months[view.month] : layers[view.layer].image;
  const pixel = unit * view.zoom * window.devicePixelRatio * (data.width / image.width);
  ink.imageSmoothingEnabled = view.layer === "months" ? pixel < 4 : pixel < 1;
  ink.drawImage(image, screenX(0), screenY(0), data.width * unit * view.zoom, data.height * unit * view.zoom);
  ink.font = "11px system-ui, sans-serif";
  if (shown("graticule")) drawGraticule(false);
  if (shown("units")) data.units.forEach((line) => stroke(line, "#7a0f3c", 1.5, false));
  if (shown("fields")) {
    for (const field of data.fields) {
      if (view.only >= 0 && field[1] !== view.only) continue;
      outline(field[9], true);
      ink.lineWidth = 1.2;
      ink.strokeStyle = view.layer === "months" ? "#ffffffd0" : "#1b2622b0";
      ink.stroke();
    }
  }
  if (shown("sites")) data.sites.forEach((site) => stroke(site, "#0033cc", 2));
  if (view.field) stroke(view.field, "#000", 2.5);
  if (view.pixel) {
    ink.lineWidth = 1.5;
    ink.strokeStyle = "#000";
    const side = unit * view.zoom;
    ink.strokeRect(screenX(Math.floor(view.pixel[0])) - 1, screenY(Math.floor(view.pixel[1])) - 1, side + 2, side + 2);
  }
  drawScale();
  drawNorth();
  ink.restore();
  ink.strokeStyle = "#3a453f";
  ink.lineWidth = 1;
  ink.strokeRect(MARGIN.left, MARGIN.top, data.width * unit, data.height * unit);
  ink.fillStyle = "#36413b";
  if (shown("graticule")) drawGraticule(true);
}

function resize() {
  const ratio = Math.max(2, window.devicePixelRatio || 1);
  width = find("#mapbox").clientWidth;
  unit = (width - MARGIN.left - MARGIN.right) / data.width;
  const tallest = Math.max(360, window.innerHeight * 0.86);
  unit = Math.min(unit, (tallest - MARGIN.top - MARGIN.bottom) / data.height);
  width = Math.round(data.width * unit + MARGIN.left + MARGIN.right);
  height = Math.round(data.height * unit + MARGIN.top + MARGIN.bottom);
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  canvas.style.width = `${width}px`;
  canvas.style.aspectRatio = `${width} / ${height}`;
  ink.setTransform(ratio, 0, 0, ratio, 0, 0);
  draw();
}

// --- reading a pixel --------------------------------------------------------------------------------------

function scoreRows(x, y) {
  if (!layers.scores) return [];
  const count = names.length - 1;
  const scored = Array.from({ length: count }, (_, k) => [k, valueAt(layers.scores, x, y, k, count)]);
  return scored.sort((a, b) => b[1] - a[1]).slice(0, 5).flatMap(([k, percent]) => {
    const bar = element("i");
    bar.style.cssText = `inline-size:${percent}%;background:${data.colours[k]}`;
    const mark = element("b");
    mark.style.insetInlineStart = `${data.thresholds[k]}%`;
    return [
      element("span", { textContent: names[k] }),
      element("span", { className: "track" }, bar, mark),
      element("span", { className: "number", textContent: decimals(percent / 100, 2) }),
    ];
  });
}

function read(x, y) {
  if (!(x >= 0 && y >= 0 && x < data.width && y < data.height)) return;
  view.pixel = [x, y];
  const value = valueAt(layers.crop, x, y);
  const box = find("#read");
  const place = `${inDegrees(degrees(1, x, y), 1, 4)}, ${inDegrees(degrees(0, x, y), 0, 4)}`;
  if (value > NONE) {
    box.replaceChildren(element("div", { className: "soft", textContent: `${words.unseen} ${place}` }));
    draw();
    return;
  }
  const parts = [element("div", { className: "big" }, swatch(value), names[value])];
  if (layers.confidence) {
    const percent = valueAt(layers.confidence, x, y);
    const score = `${words.score} ${decimals(percent / 100, 2)}`;
    const needed = `${words.needed} ${decimals((data.thresholds[value] ?? 0) / 100, 2)}`;
    parts.push(element("div", { textContent: value < NONE ? `${score}, ${needed}` : words.nothing }));
  }
  parts.push(element("div", { className: "soft", textContent: place }));
  parts.push(element("div", { className: "scores" }, ...scoreRows(x, y)));
  box.replaceChildren(...parts);
  draw();
}

// --- what the reader does ---------------------------------------------------------------------------------

const fingers = new Map();
let spread = 0;
canvas.onpointerdown = (event) => {
  fingers.set(event.pointerId, [event.clientX, event.clientY]);
  canvas.setPointerCapture(event.pointerId);
  read(...position(event));
};
canvas.onpointermove = (event) => {
  const before = fingers.get(event.pointerId);
  if (before && fingers.size === 1 && view.zoom > 1) {
    view.x -= (event.clientX - before[0]) / unit / view.zoom;
    view.y -= (event.clientY - before[1]) / unit / view.zoom;
  }
  if (before) fingers.set(event.pointerId, [event.clientX, event.clientY]);
  if (fingers.size === 2) {
    const [a, b] = [...fingers.values()];
    const now = Math.hypot(a[0] - b[0], a[1] - b[1]);
    if (spread) zoomBy(now / spread, ...position({ clientX: (a[0] + b[0]) / 2, clientY: (a[1] + b[1]) / 2 }));
    spread = now;
  } else read(...position(event));
};
canvas.onpointerup = canvas.onpointercancel = (event) => {
  fingers.delete(event.pointerId);
  spread = 0;
};
let hiding = 0;
canvas.addEventListener("wheel", (event) => {
  if (event.ctrlKey || document.activeElement === canvas) {
    event.preventDefault();
    zoomBy(Math.exp(-event.deltaY * 0.002), ...position(event));
    return;
  }
  find("#hint").classList.add("seen");
  clearTimeout(hiding);
  hiding = setTimeout(() => find("#hint").classList.remove("seen"), 900);
}, { passive: false });
canvas.onkeydown = (event) => {
  const step = 0.07 * Math.max(data.width, data.height) / view.zoom;
  const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
  if (event.key in moves) {
    if (view.zoom === 1) return;
    view.x += moves[event.key][0];
    view.y += moves[event.key][1];
  } else if (event.key === "+" || event.key === "=") zoomBy(1.5);
  else if (event.key === "-") zoomBy(1 / 1.5);
  else if (event.key === "0") reset();
  else return;
  event.preventDefault();
  bounded();
  read(view.x + data.width / view.zoom / 2, view.y + data.height / view.zoom / 2);
};
function reset() {
  Object.assign(view, { zoom: 1, field: null, pixel: null });
  draw();
}
find("#zoom-in").onclick = () => zoomBy(1.6);
find("#zoom-out").onclick = () => zoomBy(1 / 1.6);
find("#zoom-all").onclick = reset;
for (const choice of all("[name=layer]")) {
  choice.onchange = () => {
    view.layer = choice.value;
    if (find("#ramp")) find("#ramp").hidden = view.layer !== "confidence";
    if (find("#months")) find("#months").hidden = view.layer !== "months";
    draw();
  };
}
if (find("#month")) {
  find("#month").oninput = (event) => {
    view.month = Number(event.target.value);
    find("#month-name").textContent = page.months[view.month];
    draw();
  };
}
for (const box of all("[id^=show-]")) box.onchange = draw;
function isolate(value) {
  view.only = value;
  for (const button of all(".legend button")) button.setAttribute("aria-pressed", Number(button.value) === value);
  paintCrops();
  draw();
}
for (const button of all(".legend button")) {
  button.onclick = () => isolate(view.only === Number(button.value) ? -1 : Number(button.value));
}
const strip = find("#ramp .ramp");
if (strip) {
  RAMP.forEach(([from, colour], i) => {
    const patch = element("i");
    patch.style.background = colour;
    const text = i === 0 ? `< ${decimals(0.3, 1)}` : `${i === RAMP.length - 1 ? "≥ " : ""}${decimals(from / 100, 1)}`;
    strip.append(element("div", {}, patch, text));
  });
}

(async () => {
  layers.crop = await bytes(data.crop);
  paintCrops();
  if (data.confidence) {
    layers.confidence = await bytes(data.confidence);
    paintConfidence();
  }
  resize();
  document.body.dataset.ready = "map";
  if (data.scores) layers.scores = await bytes(data.scores);
  if (data.months.length) {
    layers.months = await Promise.all(data.months.map((month) => picture(month, "jpeg")));
    find("#month").dispatchEvent(new Event("input"));
  }
  document.body.dataset.ready = "all";
})();
addEventListener("resize", resize);
addEventListener("beforeprint", () => {
  view.only = -1;
  paintCrops();
  reset();
  all("details").forEach((each) => { each.open = true; });
});
