// The table of all videos and the player. Data, as pipelines/report/viewer/collection.py writes it:
//   runs:   [{name, set}], sets: [name]
//   videos: [{set, id, name, length, truth: [{name, spans}], runs: {number: run},
//             clip?, frames?: [number in the video], pixels?: [height, width], why?}]
//   run:    {ap, counted, found, tracks: [{id, name, score, truth: instance or null, spans}],
//            shown: per instance [first, last, track, ...], switches: [[frame, instance, id, id]]}
//   spans:  [first, last, ...]
// Films and maps are base64 in script elements of their own, read when a video is opened.
const data = JSON.parse(document.getElementById("viewer-data").textContent);
const at = id => document.getElementById(id);
const RATE = 10, KEPT = 4;
const state = { video: null, n: 0, timer: 0, zoom: 1, x: 0, y: 0, sort: "ap", up: true, a: 0, b: -1 };
const opened = new Map();  // number of a video -> its pictures and maps, the last few

function element(tag, properties = {}, ...inside) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...inside);
  return made;
}

// Hues by the golden ratio, as idol.images.visualize.identity_color.
function color(k) {
  const hue = (0.58 + k * 0.6180339887498949) % 1, light = [0.55, 0.68, 0.42][Math.floor(k / 8) % 3];
  const spread = 0.85 * Math.min(light, 1 - light);
  const part = n => {
    const p = (n + hue * 12) % 12;
    return Math.round(255 * (light - spread * Math.max(-1, Math.min(p - 3, 9 - p, 1))));
  };
  return [part(0), part(8), part(4)];
}
const css = rgb => "rgb(" + rgb.join(",") + ")";
const ink = rgb => (0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2] > 130 ? "#000" : "#fff");
// The place in the palette of a track: its true identity's, or one after all of them.
const place = (video, track, position) => track.truth ?? video.truth.length + position;

// ---- the runs that are looked at: A, and B where a set has several
const runsOf = video => Object.keys(video.runs).map(Number);
function pair(video) {
  const there = runsOf(video);
  const a = there.includes(state.a) ? state.a : there[0];
  return [a, there.includes(state.b) && state.b !== a ? state.b : null];
}

// ---- table
const points = value => (value == null || value < 0 ? "–" : (100 * value).toFixed(1));
const sign = (value, digits) => (value == null ? "–" : (value > 0 ? "+" : "") + value.toFixed(digits).replace("-", "−"));
function numbers(video) {
  const [a, b] = pair(video), one = video.runs[a], two = b == null ? null : video.runs[b];
  const known = run => (run && run.ap != null && run.ap >= 0 ? run.ap : null);
  const gap = known(one) == null || known(two) == null ? null : 100 * (known(two) - known(one));
  return {
    name: (video.id + " " + video.name).trim(), set: data.sets[video.set], ap: known(one),
    switches: one.switches.length, truth: video.truth.length, tracks: one.found,
    apB: known(two), gap, switchesB: two ? two.switches.length : null,
  };
}
function columns() {
  const compared = data.videos.some(video => pair(video)[1] != null);
  document.querySelector(".viewer").classList.toggle("compared", compared);
  return [
    ["name", "video", String],
    ...(data.sets.length > 1 ? [["set", "set", String]] : []),
    ["ap", compared ? "AP A" : "AP", points],
    ...(compared ? [["apB", "AP B", points], ["gap", "B−A", value => sign(value, 1)]] : []),
    ["switches", compared ? "sw. A" : "switches", String],
    ...(compared ? [["switchesB", "sw. B", value => (value == null ? "–" : String(value))]] : []),
    ["truth", "true", String],
    ["tracks", "found", String],
  ];
}
let listed = [];
function table() {
  const words = at("f-text").value.toLowerCase(), category = at("f-category").value;
  const least = Number(at("f-switches").value) || 0, most = at("f-ap").value === "" ? 100 : Number(at("f-ap").value);
  listed = data.videos.map((video, number) => ({ video, number, row: numbers(video) })).filter(({ video, row }) =>
    row.name.toLowerCase().includes(words)
    && (at("f-set").value === "" || video.set === Number(at("f-set").value))
    && (category === "" || has(video, category))
    && Math.max(row.switches, row.switchesB ?? 0) >= least
    && (row.ap == null ? most >= 100 : 100 * row.ap <= most));
  const key = state.sort, turn = state.up ? 1 : -1;
  listed.sort((one, two) => {
    const x = one.row[key], y = two.row[key];
    if (x == null || y == null) return (x == null) - (y == null);  // without a value: always last
    return turn * (typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y);
  });
  const head = element("tr");
  for (const [name, title] of columns()) {
    const button = element("button", { type: "button", className: "sort", textContent: title });
    button.onclick = () => { state.up = state.sort === name ? !state.up : name !== "switches" && name !== "switchesB"; state.sort = name; table(); };
    const cell = element("th", { scope: "col", className: typeof numbers(data.videos[0])[name] === "string" ? "text" : "" }, button);
    if (name === key) cell.setAttribute("aria-sort", state.up ? "ascending" : "descending");
    head.append(cell);
  }
  const rows = listed.map(({ video, number, row }) => {
    const line = element("tr", { className: number === state.video ? "open" : "" });
    for (const [name, , show] of columns()) {
      const cell = element("td", { className: typeof row[name] === "string" ? "text" : "" });
      if (name === "name") {
        const button = element("button", { type: "button", className: "open-video", textContent: row.name });
        button.setAttribute("aria-pressed", String(number === state.video));
        button.onclick = () => open(number);
        cell.append(button, video.clip ? "" : element("small", { className: "muted", textContent: " no clip" }));
      } else cell.textContent = show(row[name]);
      line.append(cell);
    }
    line.dataset.number = number;
    return line;
  });
  at("video-table").tHead.replaceChildren(head);
  at("video-table").tBodies[0].replaceChildren(...rows);
  at("f-count").textContent = listed.length + " of " + data.videos.length + " videos";
}
const has = (video, category) =>
  [...video.truth, ...Object.values(video.runs).flatMap(run => run.tracks)].some(one => one.name === category);

// ---- a video's pictures and maps
const bytes = id => Uint8Array.from(atob(at(id).textContent), c => c.charCodeAt(0));
async function inflated(id) {
  const stream = new Blob([bytes(id)]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}
const event = (target, name) => new Promise((done, failed) => {
  target.addEventListener(name, done, { once: true });
  target.addEventListener("error", () => failed(new Error("this browser cannot decode VP9 in WebM")), { once: true });
});
async function load(number, told) {
  const video = data.videos[number];
  if (!video.clip || opened.has(number)) return;
  const made = { maps: {}, pictures: [], error: "" };
  const [height, width] = video.pixels;
  try {
    for (const name of ["truth", ...runsOf(video).map(n => "run" + n)]) {
      if (at(video.clip + "-" + name)) made.maps[name] = await inflated(video.clip + "-" + name);
    }
  } catch (error) { made.error = "no masks, as this browser cannot inflate them (" + error.message + ")"; }
  opened.set(number, made);
  if (opened.size > KEPT) opened.delete(opened.keys().next().value);
  try {
    const film = element("video", { muted: true, preload: "auto", playsInline: true });
    const ready = event(film, "loadeddata");
    film.src = "data:video/webm;base64," + at(video.clip + "-film").textContent;
    await ready;
    for (let n = 0; n < video.frames.length; n++) {
      // A browser may report a seek before the frame can be drawn; it then tells of the frame.
      const drawable = n && film.requestVideoFrameCallback ? new Promise(done => film.requestVideoFrameCallback(done)) : null;
      const there = event(film, "seeked");
      film.currentTime = (n + 0.5) / RATE;  // the middle of the frame: no rounding can miss it
      await there;
      await Promise.race([drawable, new Promise(done => setTimeout(done, 500))]);
      const canvas = element("canvas", { width, height });
      canvas.getContext("2d").drawImage(film, 0, 0, width, height);
      made.pictures[n] = canvas;
      told();
    }
  } catch (error) { made.error = "no pictures: " + error.message; }
  told();
}

// ---- panels
let panels = [];
function build() {
  const video = data.videos[state.video], [a, b] = pair(video);
  const named = [[a, (b == null ? "" : "A: ") + data.runs[a].name]];
  if (b != null) named.push([b, "B: " + data.runs[b].name]);
  if (video.truth.length) named.push(["truth", "truth"]);
  const shown = at("difference").checked && named.length > 1 ? [...named, ["difference", "difference"]] : named;
  panels = shown.map(([what, title]) => {
    const canvas = element("canvas");
    const [height, width] = video.pixels ?? [180, 320];
    const scale = Math.max(1, Math.ceil(640 / width));
    canvas.width = scale * width; canvas.height = scale * height;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", title);  // until there is more to say
    const figure = element("figure", {}, element("figcaption", { textContent: title }), element("div", { className: "window" }, canvas));
    return { what, title, canvas, scale, figure };
  });
  at("panels").replaceChildren(...panels.map(panel => panel.figure));
  at("panels").dataset.count = panels.length;
  if (panels.some(panel => panel.what === "difference")) {
    const second = b == null ? "truth" : "B";
    at("panels").append(element("p", { className: "legend" }, ...[["only", "found by " + (b == null ? "the run" : "A") + " alone"], ["other", second === "truth" ? "missed" : "found by B alone"], ["mixed", "another identity"]]
      .map(([kind, text]) => element("span", {}, element("span", { className: "swatch " + kind }), text))));
  }
  for (const panel of panels) move(panel.canvas);
}
const DIFFERENCE = { only: [240, 140, 0], other: [30, 130, 255], mixed: [225, 40, 170] };
function layers(video, what) {
  const rows = what === "truth" ? video.truth : video.runs[what].tracks;
  return rows.map((row, n) => ({
    rgb: color(what === "truth" ? n : place(video, row, n)), dashed: what !== "truth" && row.truth == null && video.truth.length > 0,
    text: what === "truth" ? row.name + " " + n : row.name + " " + row.id + " " + row.score.toFixed(2),
    identity: what === "truth" ? n : row.truth ?? -1,
  }));
}
function painted(map, start, [height, width], drawn, alpha) {
  const image = new ImageData(width, height), out = image.data;
  const corners = new Map();
  for (let y = 0, p = start, q = 0; y < height; y++) for (let x = 0; x < width; x++, p++, q += 4) {
    const value = map[p];
    if (!value) continue;
    if (!corners.has(value)) corners.set(value, [x, y]);
    const layer = drawn[value - 1];
    const edge = (x + 1 < width && map[p + 1] !== value) || (y + 1 < height && map[p + width] !== value)
      || (x > 0 && map[p - 1] !== value) || (y > 0 && map[p - width] !== value);
    out[q] = layer.rgb[0]; out[q + 1] = layer.rgb[1]; out[q + 2] = layer.rgb[2];
    out[q + 3] = edge && (!layer.dashed || (x + y) % 6 < 3) ? 255 : alpha;
  }
  return [image, corners];
}
function differing(video, loaded, start, [height, width]) {
  const [a, b] = pair(video), image = new ImageData(width, height), out = image.data;
  const second = b ?? "truth";
  const one = loaded.maps["run" + a], two = loaded.maps[b == null ? "truth" : "run" + b];
  if (!one || !two) return image;
  const left = layers(video, a), right = layers(video, second), plain = !video.truth.length;
  for (let p = start, q = 0; q < out.length; p++, q += 4) {
    const u = one[p], v = two[p];
    const kind = u && !v ? "only" : !u && v ? "other"
      : u && v && !plain && left[u - 1].identity !== right[v - 1].identity ? "mixed" : null;
    if (kind) [out[q], out[q + 1], out[q + 2], out[q + 3]] = [...DIFFERENCE[kind], 190];
  }
  return image;
}
function paint() {
  if (state.video == null) return;
  const video = data.videos[state.video], loaded = opened.get(state.video), n = state.n;
  const size = video.pixels, alpha = Math.round(2.55 * Number(at("opacity").value));
  for (const { what, title, canvas, scale } of panels) {
    const pen = canvas.getContext("2d");
    pen.fillStyle = "#767c82";
    pen.fillRect(0, 0, canvas.width, canvas.height);
    if (!loaded) continue;
    if (loaded.pictures[n]) pen.drawImage(loaded.pictures[n], 0, 0, canvas.width, canvas.height);
    const start = n * size[0] * size[1], sheet = element("canvas", { width: size[1], height: size[0] });
    if (what === "difference") {
      sheet.getContext("2d").putImageData(differing(video, loaded, start, size), 0, 0);
      pen.drawImage(sheet, 0, 0, canvas.width, canvas.height);
      canvas.setAttribute("aria-label", title + ", frame " + video.frames[n]);
      continue;
    }
    const map = loaded.maps[what === "truth" ? "truth" : "run" + what], drawn = layers(video, what);
    if (!map) continue;
    const [image, corners] = painted(map.subarray(start, start + size[0] * size[1]), 0, size, drawn, alpha);
    sheet.getContext("2d").putImageData(image, 0, 0);
    pen.drawImage(sheet, 0, 0, canvas.width, canvas.height);
    canvas.setAttribute("aria-label", title + ", frame " + video.frames[n] + ": " + [...corners.keys()].map(v => drawn[v - 1].text).join(", "));
    if (at("labels").checked) write(pen, canvas, corners, drawn, scale);
  }
  at("player").dataset.pictures = loaded ? loaded.pictures.length : 0;
  if (loaded && loaded.error) at("facts").textContent = loaded.error;
}
function write(pen, canvas, corners, drawn, scale) {
  const height = Math.max(6, Math.round((panels.length > 2 ? 1.35 : 1) * canvas.width / 36 / Math.sqrt(state.zoom))), taken = [];
  pen.font = "600 " + Math.round(0.78 * height) + "px system-ui, sans-serif";
  for (const [value, [x, y]] of corners) {
    const { text, rgb } = drawn[value - 1], width = pen.measureText(text).width + 8;
    const left = Math.max(0, Math.min(x * scale, canvas.width - width));
    let top = Math.max(0, Math.min(y * scale - height, canvas.height - height));
    while (taken.some(([l, t, w]) => left < l + w && l < left + width && Math.abs(t - top) < height) && top < canvas.height - height) top += 2;
    taken.push([left, top, width]);
    pen.fillStyle = css(rgb); pen.fillRect(left, top, width, height);
    pen.fillStyle = ink(rgb); pen.fillText(text, left + 4, top + height * 0.76);
  }
}

// ---- zoom: all panels show the same part
function move(canvas) {
  canvas.style.transform = "scale(" + state.zoom + ") translate(" + state.x + "%, " + state.y + "%)";
}
function zoom(factor) {
  state.zoom = factor ? Math.min(8, Math.max(1, state.zoom * factor)) : 1;
  const room = 50 - 50 / state.zoom;  // percent of the picture that may leave on each side
  state.x = Math.min(room, Math.max(-room, state.x)); state.y = Math.min(room, Math.max(-room, state.y));
  at("zoom").textContent = Math.round(100 * state.zoom) + " %";
  for (const { canvas } of panels) move(canvas);
  paint();
}
at("panels").addEventListener("wheel", e => { if (e.ctrlKey) { e.preventDefault(); zoom(e.deltaY < 0 ? 1.25 : 0.8); } }, { passive: false });
at("panels").addEventListener("dblclick", () => zoom(1.6));
at("panels").addEventListener("pointermove", e => {
  if (!(e.buttons & 1) || state.zoom === 1 || !panels.length) return;
  const box = panels[0].figure.querySelector(".window").getBoundingClientRect();
  state.x += 100 * e.movementX / box.width / state.zoom; state.y += 100 * e.movementY / box.height / state.zoom;
  zoom(1);
});
