// Run a bundle in Node, with the same reader as the page in examples/web: recorded cases first, then a picture.
//
//   node examples/node/classify.mjs birds.bundle
//   node examples/node/classify.mjs birds.bundle photo.ppm
//
// A picture is a binary PPM, which needs no decoder: convert photo.jpg photo.ppm. Without one, a drawn one is classified.

import { readFile } from "node:fs/promises";
import { join } from "node:path";
import * as ort from "onnxruntime-node";
import { Bundle } from "../web/polyadapt.js";

/** Pixels of a binary PPM (P6, 8 bits). */
function readPpm(bytes) {
  const head = /^P6\s+(?:#[^\n]*\n\s*)*(\d+)\s+(\d+)\s+255\s/.exec(bytes.toString("latin1", 0, 1000));
  if (!head) throw new Error("the picture is no binary PPM of 8 bits; make one: convert photo.jpg -depth 8 photo.ppm");
  const [width, height] = [Number(head[1]), Number(head[2])];
  return { pixels: bytes.subarray(head[0].length, head[0].length + width * height * 3), width, height };
}

/** A disc on a slope of grey. */
function drawn(width = 96, height = 72) {
  const inside = (x, y) => (x - width / 2) ** 2 + (y - height / 2) ** 2 < (height / 3) ** 2;
  const pixels = Uint8Array.from({ length: width * height * 3 }, (_, at) => {
    const [x, y] = [Math.floor(at / 3) % width, Math.floor(at / 3 / width)];
    return inside(x, y) ? [220, 60, 40][at % 3] : Math.round((160 * x) / width);
  });
  return { pixels, width, height };
}

const [folder, file] = process.argv.slice(2);
if (!folder) throw new Error("usage: node classify.mjs BUNDLE [PICTURE.ppm]");
const bundle = await Bundle.open(ort, async (path) => new Uint8Array(await readFile(join(folder, path))));

const rows = await bundle.selftest();
const failed = rows.filter((row) => !row.ok);
for (const row of rows) console.log(`${row.ok ? "ok  " : "FAIL"} ${row.case.padEnd(24)} ${row.output.padEnd(12)} error ${row.error.toExponential(1)} tolerance ${row.tolerance.toExponential(0)}`);
console.log(rows.length ? `${rows.length - failed.length} of ${rows.length} recorded outputs agree with torch` : "not proved: this bundle holds no recorded case");

if (bundle.manifest.graphs.preprocess) {
  const { pixels, width, height } = file ? readPpm(await readFile(file)) : drawn();
  const feeds = await bundle.picture(pixels, width, height);
  for (const name of [null, ...bundle.artifacts, null]) {
    const { label, score } = await bundle.answer(feeds, name);
    console.log(`${(name ?? "base").padEnd(16)} ${label} ${score.toFixed(6)}`);
  }
}
process.exitCode = failed.length || !rows.length ? 1 : 0;
