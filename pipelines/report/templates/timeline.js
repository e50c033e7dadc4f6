// Who was shown when, the controls, and the start of the player.
const SVG = "http:" + "//www.w3.org/2000/svg";
function drawn(tag, attributes, text) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text != null) made.textContent = text;
  return made;
}
const LEFT = 150, WIDTH = 900, ROW = 18;
const across = (video, frame) => LEFT + (WIDTH - LEFT - 8) * frame / video.length;
const frames = (first, last) => (first === last ? "frame " + first : "frames " + first + " to " + last);

function timeline(video, number) {
  const run = video.runs[number], marks = [], rows = [];
  const bar = (y, first, last, rgb, height, tip, extra) => drawn("rect", {
    x: across(video, first).toFixed(1), width: Math.max(1.5, across(video, last + 1) - across(video, first) - 0.6).toFixed(1),
    y, height, fill: css(rgb), "data-tip": tip, ...extra });
  const name = (y, text) => drawn("text", { x: LEFT - 8, y: y + 12, "text-anchor": "end" }, text.length > 22 ? text.slice(0, 21) + "…" : text);
  let y = 4;
  video.truth.forEach((one, g) => {
    rows.push(name(y, one.name + " " + g));
    for (let i = 0; i < one.spans.length; i += 2) rows.push(bar(y + 12, one.spans[i], one.spans[i + 1], color(g), 2, one.name + " " + g + " is there, " + frames(one.spans[i], one.spans[i + 1])));
    const shown = run.shown[g] ?? [];
    for (let i = 0; i < shown.length; i += 3) {
      const track = run.tracks[shown[i + 2]], rgb = color(place(video, track, shown[i + 2]));
      rows.push(bar(y, shown[i], shown[i + 1], rgb, 11, one.name + " " + g + " is shown by track " + track.id + " (" + track.name + " " + track.score.toFixed(2) + "), " + frames(shown[i], shown[i + 1])));
      if (across(video, shown[i + 1] + 1) - across(video, shown[i]) > 16) rows.push(drawn("text", { x: across(video, shown[i]) + 3, y: y + 9.5, class: "in", style: "fill:" + ink(rgb) }, track.id));
    }
    for (const [frame, instance, before, after] of run.switches) if (instance === g) {
      const x = across(video, frame);
      marks.push(drawn("path", { d: "M" + (x - 5) + " " + (y - 4) + "h10l-5 8z", class: "switch", "data-tip": "switch at frame " + frame + ": " + one.name + " " + g + " goes from track " + before + " to " + after }));
    }
    y += ROW;
  });
  const alone = run.tracks.map((track, n) => [track, n]).filter(([track]) => track.truth == null);
  for (const [track, n] of alone) {
    rows.push(name(y, "track " + track.id + " " + track.name));
    for (let i = 0; i < track.spans.length; i += 2) rows.push(bar(y + 2, track.spans[i], track.spans[i + 1], color(place(video, track, n)), 8, "track " + track.id + " (" + track.name + " " + track.score.toFixed(2) + "), " + frames(track.spans[i], track.spans[i + 1]) + (video.truth.length ? ": shows no instance for longest" : ""), { "fill-opacity": video.truth.length ? 0.6 : 1 }));
    y += ROW;
  }
  for (const frame of video.frames ?? []) rows.push(drawn("rect", { x: (across(video, frame + 0.5) - 0.5).toFixed(1), width: 1, y, height: 4, class: "tick" }));
  const head = drawn("rect", { class: "playhead", width: 2, y: 0, height: y + 4, x: 0 });
  const svg = drawn("svg", { viewBox: "0 0 " + WIDTH + " " + (y + 6), class: "timeline", role: "img",
    "aria-label": "Timeline of " + data.runs[number].name + ": " + video.truth.length + " instances, " + run.tracks.length + " tracks, " + run.switches.length + " identity switches" });
  svg.append(...rows, ...marks, head);
  svg.addEventListener("click", e => {
    const box = svg.getBoundingClientRect();
    seek(((e.clientX - box.left) * WIDTH / box.width - LEFT) / (WIDTH - LEFT - 8) * video.length - 0.5);
  });
  const hidden = run.found - run.tracks.length;
  return element("figure", {}, element("figcaption", { textContent: data.runs[number].name + ": " + run.switches.length + " identity switches" + (hidden ? ", " + hidden + " weak tracks not drawn" : "") }), svg);
}

// ---- time
const total = video => video.frames?.length ?? video.length;
const frameAt = (video, n) => video.frames?.[n] ?? n;
function seek(frame) {
  const video = data.videos[state.video];
  let best = 0;
  for (let n = 0; n < total(video); n++) if (Math.abs(frameAt(video, n) - frame) < Math.abs(frameAt(video, best) - frame)) best = n;
  go(best);
}
function go(n) {
  if (state.video == null) return;
  const video = data.videos[state.video], count = total(video);
  state.n = (n + count) % count;
  const frame = frameAt(video, state.n);
  at("slider").value = state.n;
  at("slider").setAttribute("aria-valuetext", "frame " + frame + " of " + video.length);
  at("frame").textContent = "frame " + frame + " of 0–" + (video.length - 1);
  for (const head of document.querySelectorAll(".playhead")) head.setAttribute("x", across(video, frame + 0.5) - 1);
  paint();
}
function play(on) {
  clearInterval(state.timer);
  state.timer = on ? setInterval(() => go(state.n + 1), 1000 / Number(at("speed").value)) : 0;
  at("play").textContent = on ? "Pause" : "Play";
}
function redraw() {
  const video = data.videos[state.video], [a, b] = pair(video);
  const shown = b == null ? [a] : [a, b];
  build();
  at("timelines").replaceChildren(...shown.map(n => timeline(video, n)));
  const jumps = shown.flatMap(n => video.runs[n].switches.map(s => [n, ...s]));
  const list = jumps.map(([n, frame, g, before, after]) => {
    const button = element("button", { type: "button", textContent: frame + ": " + video.truth[g].name + " " + g + ", " + before + " → " + after + (b == null ? "" : n === a ? " (A)" : " (B)") });
    button.onclick = () => seek(frame);
    return button;
  });
  at("switches").replaceChildren(...(list.length ? [element("span", { className: "muted", textContent: "Switches: " }), ...list] : []));
  go(Math.min(state.n, total(video) - 1));
}
async function open(number) {
  play(false);
  const video = data.videos[number], every = video.frames ? (video.frames.length === video.length ? "every frame" : video.frames.length + " of " + video.length + " frames") : (video.why ?? "no clip on this page: its timeline alone");
  Object.assign(state, { video: number, n: 0, x: 0, y: 0 });
  at("title").textContent = (data.sets.length > 1 ? data.sets[video.set] + ", " : "") + "video " + video.id + (video.name ? ", " + video.name : "");
  at("facts").textContent = pairFacts(video) + every;
  at("slider").max = total(video) - 1;
  for (const line of at("video-table").tBodies[0].rows) {
    const here = Number(line.dataset.number) === number;
    line.className = here ? "open" : "";
    line.querySelector("button").setAttribute("aria-pressed", String(here));
  }
  zoom(0);
  redraw();
  await load(number, () => { if (state.video === number) paint(); });
}
function pairFacts(video) {
  return pair(video).filter(n => n != null && video.runs[n].ap != null).map(n =>
    data.runs[n].name + ": AP " + points(video.runs[n].ap) + ", " + video.runs[n].found + " tracks for " + video.truth.length + " instances, " + video.runs[n].switches.length + " identity switches; ").join("");
}
function beside(step) {
  const here = listed.findIndex(({ number }) => number === state.video);
  if (listed.length) open(listed[(here + step + listed.length) % listed.length].number);
}
function toSwitch(step) {
  const video = data.videos[state.video], frame = frameAt(video, state.n);
  const places = pair(video).filter(n => n != null).flatMap(n => video.runs[n].switches.map(s => s[0])).sort((x, y) => x - y);
  const next = step > 0 ? places.find(f => f > frame) : places.reverse().find(f => f < frame);
  if (next != null) seek(next);
}

// ---- controls
at("play").onclick = () => play(!state.timer);
at("back").onclick = () => go(state.n - 1);
at("forth").onclick = () => go(state.n + 1);
at("previous").onclick = () => beside(-1);
at("next").onclick = () => beside(1);
at("slider").oninput = e => go(Number(e.target.value));
at("speed").onchange = () => { if (state.timer) play(true); };
at("opacity").oninput = paint;
at("labels").onchange = paint;
at("difference").onchange = redraw;
at("zoom-in").onclick = () => zoom(1.6);
at("zoom-out").onclick = () => zoom(1 / 1.6);
at("zoom-reset").onclick = () => zoom(0);
at("player").addEventListener("keydown", e => {
  if (e.altKey || e.ctrlKey || e.metaKey || state.video == null) return;
  const kind = e.target.tagName, own = kind === "SELECT" || (kind === "INPUT" && e.target.type === "range");
  const keys = {
    " ": () => play(!state.timer), n: () => beside(1), p: () => beside(-1), "+": () => zoom(1.6), "-": () => zoom(1 / 1.6), 0: () => zoom(0),
    ArrowLeft: () => (e.shiftKey ? toSwitch(-1) : go(state.n - 1)), ArrowRight: () => (e.shiftKey ? toSwitch(1) : go(state.n + 1)),
    d: () => at("difference").click(), l: () => at("labels").click(),
  };
  if (!(e.key in keys) || (own && e.key.startsWith("Arrow")) || (e.key === " " && kind !== "DIV")) return;
  e.preventDefault();
  keys[e.key]();
});
function choices(select, rows) {
  select.replaceChildren(...rows.map(([value, text]) => element("option", { value, textContent: text })));
}
at("filters").onsubmit = e => e.preventDefault();
for (const id of ["f-text", "f-set", "f-category", "f-switches", "f-ap"]) at(id).oninput = table;
for (const [id, key] of [["run-a", "a"], ["run-b", "b"]]) at(id).onchange = e => { state[key] = Number(e.target.value); table(); if (state.video != null) open(state.video); };
choices(at("f-set"), [["", "all"], ...data.sets.map((name, n) => [n, name])]);
at("f-set-label").hidden = data.sets.length < 2;
const categories = [...new Set(data.videos.flatMap(video => [...video.truth, ...Object.values(video.runs).flatMap(run => run.tracks)].map(one => one.name)))].sort();
choices(at("f-category"), [["", "all"], ...categories.map(name => [name, name])]);
if (data.videos.some(video => runsOf(video).length > 1)) {
  const runs = data.runs.map((run, n) => [n, run.name]);
  choices(at("run-a"), runs);
  choices(at("run-b"), [[-1, "none"], ...runs]);
  state.b = runsOf(data.videos.find(video => runsOf(video).length > 1))[1];
  at("run-b").value = state.b;
  for (const label of document.querySelectorAll("label.runs")) label.hidden = false;
}
table();
if (listed.length) open(listed[0].number);
