// The page: opens the bundle that `?bundle=` names, classifies pictures with one adapter or another, and runs the recorded cases.

import * as ort from "onnxruntime-web";
import { Bundle, below } from "./polyadapt.js";

const TOP = 5;
const SAMPLES = { seven: digit("7"), three: digit("3"), disc };

ort.env.wasm.numThreads = 1; // more need a server that isolates the page (COOP and COEP headers)

const $ = (id) => document.getElementById(id);
const chosen = { artifact: null, sample: "seven" };
let bundle;

try {
  const folder = new URLSearchParams(location.search).get("bundle") ?? "bundle/";
  bundle = await Bundle.open(ort, below(folder.endsWith("/") ? folder : `${folder}/`));
  describe(bundle.manifest);
  await bundle.load();
  if (bundle.manifest.graphs.preprocess && bundle.manifest.task.kind === "classification") {
    offerAdapters();
    offerSamples();
    await choose({ sample: "seven" });
    await showSwap();
  }
  await showCases();
  document.body.dataset.state = "done";
} catch (error) {
  console.error(error);
  $("problem").textContent = error.message;
  $("problem").hidden = false;
  document.body.dataset.state = "failed";
}

function describe({ name, task, family, form, parity }) {
  document.title = $("name").textContent = name;
  $("about").textContent = `${task.kind}, family ${family}, form ${form}; agreement with torch at export ${parity.max_relative_error.toExponential(1)}`;
}

function offerAdapters() {
  $("try").hidden = false;
  for (const name of [null, ...bundle.artifacts]) {
    const button = element("button", { textContent: name ?? "base", onclick: () => choose({ artifact: name }) });
    button.dataset.artifact = name ?? "";
    $("adapters").append(button);
  }
}

function offerSamples() {
  for (const name of Object.keys(SAMPLES)) {
    const button = element("button", { textContent: name, onclick: () => choose({ sample: name }) });
    button.dataset.sample = name;
    $("samples").append(button);
  }
  $("file").onchange = async (event) => {
    const image = await createImageBitmap(event.target.files[0], { colorSpaceConversion: "none" });
    await choose({ sample: null, image });
  };
}

/** Draws what was chosen, a sample or the user's image, and shows what the chosen adapter says to it. */
async function choose({ sample, image, ...change }) {
  Object.assign(chosen, change);
  const canvas = $("picture");
  if (image) {
    [canvas.width, canvas.height] = [image.width, image.height];
    context().drawImage(image, 0, 0);
    chosen.sample = null;
  } else if (sample) {
    canvas.width = canvas.height = 224;
    SAMPLES[sample](context());
    chosen.sample = sample;
  }
  for (const button of $("adapters").children) button.setAttribute("aria-pressed", button.dataset.artifact === (chosen.artifact ?? ""));
  for (const button of $("samples").children) button.setAttribute("aria-pressed", button.dataset.sample === chosen.sample);
  await showAnswer();
}

async function showAnswer() {
  const start = performance.now();
  const { top } = await bundle.answer(await feeds(), chosen.artifact);
  $("timing").textContent = `${chosen.artifact ?? "base"}: ${Math.round(performance.now() - start)} ms, pre-processing included`;
  $("classes").replaceChildren(...top.slice(0, TOP).map(classRow));
}

function classRow([label, score]) {
  const row = element("li");
  const bar = element("span", { className: "bar" });
  const filled = element("i");
  filled.style.width = `${100 * score}%`;
  bar.append(filled);
  row.append(element("span", { className: "name", textContent: label, title: label }), bar, element("span", { className: "score", textContent: score.toFixed(3) }));
  return row;
}

async function showSwap() {
  $("swap-section").hidden = false;
  const order = [null, ...bundle.artifacts, ...[...bundle.artifacts].reverse(), null];
  const taken = await feeds();
  const first = new Map();
  for (const name of order) {
    const { label, score, top } = await bundle.answer(taken, name);
    const before = first.get(name);
    if (!before) first.set(name, top);
    const same = before?.every(([known, value], index) => known === top[index][0] && Object.is(value, top[index][1]));
    row($("swap"), [name ?? "base", label, score.toFixed(6), before ? mark(same, "bit for bit", "differs") : ""]);
  }
}

async function showCases() {
  const rows = await bundle.selftest();
  for (const { case: name, artifact, output, error, tolerance, ok } of rows) {
    row($("cases"), [name, artifact ?? "", output, error.toExponential(2), tolerance.toExponential(0), mark(ok, "agrees", "differs")]);
  }
  const failed = rows.filter(({ ok }) => !ok).length;
  const differ = rows.length ? `${failed} of ${rows.length} recorded outputs differ from torch.` : "Not proved: this bundle holds no recorded case.";
  $("verdict").replaceChildren(mark(rows.length > 0 && failed === 0, `All ${rows.length} recorded outputs agree with torch.`, differ));
}

async function feeds() {
  const { data, width, height } = context().getImageData(0, 0, $("picture").width, $("picture").height);
  return bundle.picture(data, width, height);
}

function context() {
  return $("picture").getContext("2d", { willReadFrequently: true });
}

function row(table, cells) {
  const line = table.tBodies[0].insertRow();
  for (const cell of cells) line.insertCell().append(cell);
}

function mark(good, yes, no) {
  return element("span", { className: good ? "good" : "bad", textContent: good ? yes : no });
}

function element(tag, properties = {}) {
  return Object.assign(document.createElement(tag), properties);
}

function digit(text) {
  return (canvas) => {
    canvas.fillStyle = "#000";
    canvas.fillRect(0, 0, 224, 224);
    canvas.fillStyle = "#fff";
    canvas.font = "170px sans-serif";
    canvas.textAlign = "center";
    canvas.textBaseline = "middle";
    canvas.fillText(text, 112, 118);
  };
}

function disc(canvas) {
  canvas.fillStyle = "#203040";
  canvas.fillRect(0, 0, 224, 224);
  canvas.fillStyle = "#dc3c28";
  canvas.beginPath();
  canvas.arc(112, 112, 74, 0, 2 * Math.PI);
  canvas.fill();
}
