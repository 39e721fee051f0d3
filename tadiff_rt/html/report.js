// What the reader chooses, and what the two pictures show for it.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const volumes = new Volumes(data);
const TITLES = { t1: "T1", t1c: "T1c", flair: "FLAIR" };
const LABEL = { textScale: 1.1, textColor: [1, 1, 1, 1], backgroundColor: [0, 0, 0, 0.65] };
// Below this the background of a forecast is not black: noise that says nothing.
const BLACK = 0.03;
const state = { plan: 0, sequence: "t1c", view: "axial", overlay: "none", turn: 0 };
const element = (id) => document.getElementById(id);
const viewers = {};

function viewer(name) {
  const nv = new niivue.Niivue({
    backColor: [0, 0, 0, 1],
    crosshairColor: [0.62, 0.68, 0.74, 1],
    crosshairWidth: 0.4,
    crosshairWidthUnit: "percent",
    crosshairGap: 8,
    fontColor: [0.75, 0.78, 0.82, 1],
    isRadiologicalConvention: true,
    dragMode: niivue.DRAG_MODE.none,
    dragAndDropEnabled: false,
    scrollRequiresFocus: true,
    multiplanarShowRender: niivue.SHOW_RENDER.NEVER,
    sliceType: niivue.SLICE_TYPE.AXIAL,
    viewModeHotKey: "",
    clipPlaneHotKey: "",
    cycleClipPlaneHotKey: "",
    loadingText: "",
    logLevel: "error",
  });
  const drawn = nv.drawScene.bind(nv);
  nv.drawScene = () => {
    drawn();
    drawInk(nv, name);
  };
  return nv;
}

// Outlines go on a canvas above NiiVue's, which is redrawn whenever that one is.
function drawInk(nv, name) {
  const ink = element(`${name}-ink`);
  // Drawn by the CPU: with WebGL in software, Chromium stops updating what its GPU code draws.
  const context = ink.getContext("2d", { willReadFrequently: true });
  if (ink.width !== nv.canvas.width) ink.width = nv.canvas.width;
  if (ink.height !== nv.canvas.height) ink.height = nv.canvas.height;
  context.clearRect(0, 0, ink.width, ink.height);
  if (!nv.volumes.length || !element("outlines").checked) return;
  const width = 1.6 * (window.devicePixelRatio || 1);
  for (const [held, colour] of state.outlines[name]) {
    drawOutline(context, nv, held, colour, width);
  }
}

async function outline(name) {
  const { shape, levels } = volumes.kind(name);
  return { levels: await volumes.levels(name), shape, level: levels / 2 };
}

function look(kind) {
  const { from, colormap, negative = "" } = OVERLAYS[kind];
  const { high } = data.kinds[kind === "probability" ? "share" : kind];
  const opacity = element("opacity").value / PERCENT;
  return { colormap, colormapNegative: negative, cal_min: from * high, cal_max: high, opacity };
}

async function overlayImages(plan) {
  const entry = state.overlay === "std" ? plan.std?.[state.sequence] : plan[state.overlay];
  return entry ? [await volumes.image(entry, look(state.overlay))] : [];
}

function place(nv, images, label) {
  nv.volumes = images;
  nv.document.labels = [];
  nv.addLabel(label, LABEL, undefined, niivue.LabelAnchorPoint.BOTTOMCENTER);
  nv.setVolume(images[0], 0);
}

// Shows what is chosen. Decoding takes time: of several calls only the last one counts.
async function show() {
  const turn = ++state.turn;
  const plan = data.plans[state.plan];
  const grey = { colormap: "gray", cal_min: BLACK, cal_max: 1 };
  const known = data.last.mask && (await outline(data.last.mask));
  const forecast = await outline(plan.probability);
  const last = await volumes.image(data.last.images[state.sequence], grey);
  const image = await volumes.image(plan.images[state.sequence], grey);
  const images = [image, ...(await overlayImages(plan))];
  if (turn !== state.turn) return;
  const knownOutline = known ? [[known, data.known_colour]] : [];
  state.outlines = { last: knownOutline, forecast: [...knownOutline, [forecast, plan.colour]] };
  place(viewers.last, [last], `${TITLES[state.sequence]}, ${data.last.label}`);
  place(viewers.forecast, images, `${TITLES[state.sequence]}, ${plan.label}`);
  element("forecast-key").style.borderColor = plan.colour;
  element("forecast-title").textContent = plan.label;
  element("forecast-text").textContent = plan.volume;
  element("forecast-canvas").setAttribute("aria-label", plan.label);
  const wanted = state.overlay !== "none";
  element("overlay-note").hidden = !wanted || images.length > 1;
  showBar(images.length > 1);
  showValues();
  const shown = [plan.day, plan.treatment, state.sequence, state.overlay];
  element("pictures").dataset.shown = shown.join(" ");
}

function showBar(held) {
  element("colour-bar").hidden = !held;
  if (!held) return;
  const { cal_min: low, cal_max: high, colormapNegative: negative } = look(state.overlay);
  element("bar-title").textContent = OVERLAYS[state.overlay].title;
  element("bar-low").textContent = percent(negative ? -high : low);
  // Standard deviations may lie beyond the end of their colours.
  const beyond = state.overlay.endsWith("std") ? "≥ " : "";
  element("bar-high").textContent = `${beyond}${percent(high)}`;
  drawBar(element("bar"), viewers.forecast, look(state.overlay));
}

// The values under the cross, from NiiVue's voxels.
function showValues() {
  const nv = viewers.forecast;
  const mm = nv.frac2mm(nv.scene.crosshairPos, 0, true);
  const value = (image) => image.getValue(...image.mm2vox(Array.from(mm)), 0);
  const texts = [
    `last scan ${percent(value(viewers.last.volumes[0]))}`,
    `forecast ${percent(value(nv.volumes[0]))} of full brightness`,
  ];
  if (nv.volumes.length > 1) {
    texts.push(`${OVERLAYS[state.overlay].title} ${percent(value(nv.volumes[1]))}`);
  }
  element("values").textContent = `At the cross: ${texts.join("; ")}`;
}

function showSlice() {
  const slices = data.kinds.image.shape[2];
  const at = Math.min(slices, Math.floor(viewers.forecast.scene.crosshairPos[2] * slices) + 1);
  element("slice").value = at;
  element("slice-value").textContent = `${at} of ${slices}`;
}

function moveTo(fractions) {
  for (const nv of Object.values(viewers)) {
    nv.scene.crosshairPos = fractions;
    nv.drawScene();
  }
  showSlice();
  showValues();
}

// In the middle of the tumour, in its largest slice.
function startingPoint() {
  return data.start.map((at, axis) => (at + 0.5) / data.kinds.share.shape[axis]);
}

function choose(group, value) {
  for (const button of document.querySelectorAll(`[data-${group}]`)) {
    button.setAttribute("aria-pressed", String(button.dataset[group] === value));
  }
}

function listen() {
  for (const button of document.querySelectorAll("#controls button")) {
    button.addEventListener("click", () => {
      const [[group, value]] = Object.entries(button.dataset);
      choose(group, value);
      state[group] = group === "plan" ? Number(value) : value;
      if (group === "view") showView();
      else show();
    });
  }
  element("overlay").addEventListener("change", (event) => {
    state.overlay = event.target.value;
    show();
  });
  element("opacity").addEventListener("input", showOpacity);
  element("outlines").addEventListener("change", () => {
    for (const nv of Object.values(viewers)) nv.drawScene();
  });
  element("slice").addEventListener("input", (event) => {
    const [x, y] = viewers.forecast.scene.crosshairPos;
    moveTo([x, y, (event.target.value - 0.5) / data.kinds.image.shape[2]]);
  });
}

function showOpacity() {
  const value = element("opacity").value;
  element("opacity-value").textContent = `${value} %`;
  if (viewers.forecast.volumes.length > 1) viewers.forecast.setOpacity(1, value / PERCENT);
}

function showView() {
  const type = state.view === "axial" ? niivue.SLICE_TYPE.AXIAL : niivue.SLICE_TYPE.MULTIPLANAR;
  for (const nv of Object.values(viewers)) nv.setSliceType(type);
}

async function start() {
  if (!document.createElement("canvas").getContext("webgl2")) return;
  document.documentElement.classList.add("live");
  for (const name of ["last", "forecast"]) {
    viewers[name] = viewer(name);
    for (const [key, map] of Object.entries(COLORMAPS)) viewers[name].addColormap(key, map);
    await viewers[name].attachTo(`${name}-canvas`);
  }
  viewers.last.broadcastTo(viewers.forecast, { "2d": true });
  viewers.forecast.broadcastTo(viewers.last, { "2d": true });
  listen();
  await show();
  moveTo(startingPoint());
  viewers.forecast.onLocationChange = () => {
    showSlice();
    showValues();
  };
  showOpacity();
  document.documentElement.dataset.viewer = "ready";
}

start().catch((error) => {
  document.documentElement.classList.remove("live");
  element("status").textContent = `The viewer could not start: ${error.message}`;
  throw error;
});
