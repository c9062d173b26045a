// The table of fields: filter, order, download, and the way from a row to the map. After viewer.js.
"use strict";
const [NAME, CROP, AREA, SCORE, SECOND, SECOND_SCORE, AGREEMENT, DECLARED, FLAGS, RING] = Array(10).keys();
const table = { rows: data.fields.slice(), ascending: {} };
const field = {
  crop: (value) => (value < 0 ? "–" : names[value]),
  number: (value, digits) => (value === null ? "–" : decimals(value, digits)),
};

function listed() {
  const crop = find("#field-crop").value;
  const flag = find("#field-flag").value;
  return table.rows.filter((row) => (crop === "" || row[CROP] === Number(crop)) && (flag === "" || row[FLAGS].includes(flag)));
}

function fill() {
  const rows = listed();
  const total = rows.reduce((sum, row) => sum + row[AREA], 0);
  find("#field-count").textContent = `${decimals(rows.length)} ${words.fields}, ${decimals(total, 1)} ${words.ha}`;
  find("#field-rows").replaceChildren(...rows.map((row) => {
    const flags = row[FLAGS].map((flag) => element("span", { className: "flag", textContent: words.flags[flag] ?? flag }));
    const second = row[SECOND] < 0 ? "–" : `${field.crop(row[SECOND])} (${field.number(row[SECOND_SCORE], 2)})`;
    const crop = element("td");
    if (row[CROP] >= 0) crop.append(swatch(row[CROP]));
    crop.append(field.crop(row[CROP]));
    const cells = [
      element("th", { scope: "row", textContent: row[NAME] }),
      crop,
      element("td", { className: "number", textContent: decimals(row[AREA], 2) }),
      element("td", { className: "number", textContent: field.number(row[SCORE], 2) }),
      element("td", { textContent: second }),
      element("td", { className: "number", textContent: row[AGREEMENT] === null ? "–" : `${decimals(100 * row[AGREEMENT])} %` }),
      element("td", { textContent: row[DECLARED] || "–" }),
      element("td", {}, ...flags),
    ];
    const made = element("tr", { tabIndex: 0 }, ...cells);
    made.onclick = () => show(row);
    made.onkeydown = (event) => { if (event.key === "Enter") show(row); };
    return made;
  }));
}

function show(row) {
  const [xs, ys] = [0, 1].map((at) => row[RING].map((point) => point[at]));
  const [west, east, north, south] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  if (view.only >= 0 && view.only !== row[CROP]) isolate(-1);
  view.field = row[RING];
  view.zoom = Math.min(12, Math.max(1, 0.4 * Math.min(data.width / (east - west || 1), data.height / (south - north || 1))));
  view.x = (west + east) / 2 - data.width / view.zoom / 2;
  view.y = (north + south) / 2 - data.height / view.zoom / 2;
  bounded();
  read((west + east) / 2, (north + south) / 2);
  find("#mapbox").scrollIntoView({ block: "center" });
}

function save(name, text, type) {
  const link = element("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  link.click();
  URL.revokeObjectURL(link.href);
}

const quoted = (value) => (/[",\n]/.test(String(value)) ? `"${String(value).replaceAll('"', '""')}"` : value ?? "");
find("#field-csv").onclick = () => {
  const head = ["field", "class", "area_ha", "score", "runner_up", "runner_up_score", "agreement", "declared", "flags"];
  const lines = listed().map((row) => [
    row[NAME], page.classes[row[CROP]] ?? "", row[AREA], row[SCORE], page.classes[row[SECOND]] ?? "", row[SECOND_SCORE],
    row[AGREEMENT], row[DECLARED], row[FLAGS].join("|"),
  ].map(quoted).join(","));
  save("fields.csv", [head.join(","), ...lines].join("\n") + "\n", "text/csv");
};
find("#field-geojson").onclick = () => {
  const features = listed().map((row) => ({
    type: "Feature",
    properties: { field: row[NAME], class: page.classes[row[CROP]] ?? null, area_ha: row[AREA], score: row[SCORE], flags: row[FLAGS] },
    geometry: {
      type: "Polygon",
      coordinates: [row[RING].map(([x, y]) => [0, 1].map((kind) => Number(degrees(kind, x, y).toFixed(6))))],
    },
  }));
  save("fields.geojson", JSON.stringify({ type: "FeatureCollection", features }), "application/geo+json");
};
for (const button of all("#fields thead button")) {
  button.onclick = () => {
    const at = Number(button.value);
    const up = (table.ascending[at] = !table.ascending[at]);
    const key = (row) => (at === CROP || at === SECOND ? field.crop(row[at]) : at === FLAGS ? row[at].length : row[at] ?? -1);
    table.rows.sort((a, b) => (key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : 0) * (up ? 1 : -1));
    fill();
  };
}
find("#field-crop").onchange = find("#field-flag").onchange = fill;
fill();
