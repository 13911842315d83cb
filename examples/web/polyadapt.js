// A reader of bundles for JavaScript: one file for browsers and Node, over onnxruntime-web or onnxruntime-node.
//
//   import * as ort from "onnxruntime-web";
//   const bundle = await Bundle.open(ort, below("birds.bundle/"));
//   await bundle.answer(await bundle.picture(pixels, width, height), "birds");   // {label: "wren", score: 0.93}
//
// JavaScript's onnxruntime cannot feed a slot that has a default, so it is given the form of each graph whose
// slots are required, and every call feeds all of them: the defaults, or an artifact's tensors in their place.

const FORMAT = 1;

// Types of safetensors: onnxruntime's name and the array that holds them.
const TYPES = {
  F64: ["float64", Float64Array],
  F32: ["float32", Float32Array],
  I64: ["int64", BigInt64Array],
  I32: ["int32", Int32Array],
  I16: ["int16", Int16Array],
  I8: ["int8", Int8Array],
  U8: ["uint8", Uint8Array],
  BOOL: ["bool", Uint8Array],
};

/** Reads files below a URL, which ends with a slash: a function from a path to its bytes. */
export function below(url) {
  return async (path) => {
    const response = await fetch(new URL(path, new URL(url, globalThis.location?.href)));
    if (!response.ok) throw new Error(`cannot read ${path}: the server answers ${response.status}`);
    return new Uint8Array(await response.arrayBuffer());
  };
}

export class Bundle {
  // onnxruntime-web has one place where a new session finds its weights file: sessions are made one after another.
  static #turn = Promise.resolve();
  #read;
  #ort;
  #sessions = new Map();
  #tensors = new Map();

  constructor(ort, read, manifest) {
    this.#ort = ort;
    this.#read = read;
    this.manifest = manifest;
  }

  /** Opens a bundle. `ort` is the onnxruntime module, `read` a function from a path to its bytes, such as `below(url)`. */
  static async open(ort, read) {
    const text = new TextDecoder("utf-8", { ignoreBOM: true }).decode(await read("manifest.json"));
    const manifest = JSON.parse(text);
    // Its first field is the digest of its own bytes, with zeros in the digest's place.
    const digest = await sha256(new TextEncoder().encode(text.replace(manifest.sha256, "0".repeat(64))));
    if (digest !== manifest.sha256) throw new Error("manifest.json was altered: its sha256 is not the recorded one; copy the bundle again");
    if (manifest.format !== FORMAT) throw new Error(`bundle format ${manifest.format}, this reader knows format ${FORMAT}; update polyadapt.js`);
    return new Bundle(ort, read, manifest);
  }

  /** Names of the artifacts that a call may name. A merged bundle holds its one artifact in the graph. */
  get artifacts() {
    return Object.keys(this.manifest.artifacts).filter((name) => this.manifest.artifacts[name].file);
  }

  /** Class names of an artifact, or of the base. */
  labels(artifact = null) {
    const own = artifact === null ? [] : this.#entry(artifact).labels;
    return own.length ? own : this.manifest.task.labels;
  }

  /** The bytes of a listed file, checked against the size and the sha256 in the manifest. */
  async file(path) {
    const entry = this.manifest.files[path];
    const plain = path.split("/").every((part) => part && part !== "." && part !== "..") && !/[\\:%?#\0]/.test(path);
    if (!entry || !plain) throw new Error(`${path} is not a listed file of this bundle`);
    const bytes = await this.#read(path);
    if (bytes.length !== entry.size || (await sha256(bytes)) !== entry.sha256) throw new Error(`${path} was altered: its sha256 is not the one in manifest.json; copy the bundle again`);
    return bytes;
  }

  /** Reads and checks all graphs and their weights; without it the first call does. */
  async load() {
    for (const graph of Object.keys(this.manifest.graphs)) await this.#session(graph);
  }

  /**
   * Tensors in, tensors out. `feeds` may hold slots too, whole groups of them, where the artifact does not.
   * `artifact` is one of `artifacts`; null is the base.
   */
  async run(feeds, artifact = null, graph = "model") {
    const session = await this.#session(graph);
    const entry = this.manifest.graphs[graph];
    const defaults = entry.slots_defaults ? await this.#safetensors(entry.slots_defaults) : {};
    const adapted = artifact === null ? {} : await this.#safetensors(this.#entry(artifact).file);
    checkNames(Object.keys(feeds), session.inputNames, graph);
    checkGroups(Object.keys(feeds), Object.keys(defaults));
    const all = { ...defaults, ...adapted, ...feeds };
    return session.run(Object.fromEntries(session.inputNames.filter((name) => name in all).map((name) => [name, all[name]])));
  }

  /** Feeds from decoded pixels: bytes of red, green and blue, with or without alpha, row by row. */
  async picture(pixels, width, height) {
    if (!this.manifest.graphs.preprocess) throw new Error(`this bundle has no graph for pictures: ${this.manifest.preprocess?.without_graph ?? "its input is none"}`);
    const channels = pixels.length / (width * height);
    if (channels !== 3 && channels !== 4) throw new Error(`${pixels.length} bytes are no picture of ${width} x ${height} with 3 or 4 channels`);
    const rgb = channels === 3 ? Uint8Array.from(pixels) : withoutAlpha(pixels);
    return this.run({ picture: new this.#ort.Tensor("uint8", rgb, [height, width, 3]) }, null, "preprocess");
  }

  /** The best class of one example of a classifier with its probability, and in `top` all of them, the best first. */
  async answer(feeds, artifact = null) {
    const { logits } = await this.run(feeds, artifact);
    const labels = this.labels(artifact);
    const top = softmax(Array.from(logits.data)).map((score, index) => [labels[index] ?? String(index), score]).sort((a, b) => b[1] - a[1]);
    return { label: top[0][0], score: top[0][1], top };
  }

  /**
   * Runs the recorded cases and compares with torch's outputs: a row {case, artifact, output, error, tolerance, ok} for each.
   * Cases that feed slots which this graph holds fixed, as in a bank, are not among them.
   */
  async selftest() {
    const { cases } = await this.#json("parity/cases.json");
    const report = await this.#json("parity/report.json");
    const recorded = await this.#safetensors("parity/cases.safetensors");
    const rows = [];
    for (const { name, artifact, graph = "model" } of cases) {
      const part = (kind) => startingWith(recorded, `${name}/${kind}/`);
      const { inputNames } = await this.#session(graph);
      if (!Object.keys(part("slot")).every((slot) => inputNames.includes(slot))) continue;
      const found = await this.run({ ...part("in"), ...part("slot") }, artifact, graph);
      for (const [output, expected] of Object.entries(part("out"))) {
        const tolerance = report.cases.find((row) => row.name === name && row.output === output)?.tolerance ?? this.manifest.parity.tolerance;
        const error = relativeError(found[output], expected);
        rows.push({ case: name, artifact, output, error, tolerance, ok: error <= tolerance });
      }
    }
    return rows;
  }

  #entry(artifact) {
    if (!this.artifacts.includes(artifact)) throw new Error(`no artifact '${artifact}' in this bundle; it has: ${this.artifacts.join(", ") || "none"}`);
    return this.manifest.artifacts[artifact];
  }

  async #json(path) {
    return JSON.parse(new TextDecoder().decode(await this.file(path)));
  }

  #session(name) {
    return once(this.#sessions, name, async () => {
      const graph = this.manifest.graphs[name];
      if (!graph) throw new Error(`no graph '${name}' in this bundle; it has: ${Object.keys(this.manifest.graphs).join(", ")}`);
      const externalData = await Promise.all(graph.data.map(async (path) => ({ path: path.slice(path.lastIndexOf("/") + 1), data: await this.file(path) })));
      const model = await this.file(graph.slots_file ?? graph.file);
      const made = Bundle.#turn.then(() => this.#ort.InferenceSession.create(model, { externalData }));
      Bundle.#turn = made.catch(() => {});
      return made;
    });
  }

  #safetensors(path) {
    return once(this.#tensors, path, async () => readSafetensors(await this.file(path), this.#ort.Tensor));
  }
}

/** Tensors by name from the bytes of a safetensors file: 8 bytes of length, a JSON header, the data. */
export function readSafetensors(bytes, Tensor) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const start = 8 + Number(view.getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, start)));
  delete header.__metadata__;
  return Object.fromEntries(
    Object.entries(header).map(([name, { dtype, shape, data_offsets: [begin, end] }]) => {
      if (!TYPES[dtype]) throw new Error(`tensor ${name} has dtype ${dtype}; this reader knows ${Object.keys(TYPES).join(", ")}`);
      const [type, ArrayOf] = TYPES[dtype];
      const size = shape.reduce((product, axis) => product * axis, 1);
      if (size * ArrayOf.BYTES_PER_ELEMENT !== end - begin || start + end > bytes.length) throw new Error(`tensor ${name} does not fit into its file; copy the bundle again`);
      return [name, new Tensor(type, new ArrayOf(bytes.slice(start + begin, start + end).buffer), shape)];
    }),
  );
}

/** max|found - expected| / max|expected|; infinite where shapes, infinities or not-a-numbers differ. */
export function relativeError(found, expected) {
  if (!found || found.dims.join() !== expected.dims.join()) return Infinity;
  let difference = 0;
  let largest = 0;
  for (let at = 0; at < expected.data.length; at++) {
    const [got, wanted] = [Number(found.data[at]), Number(expected.data[at])];
    if (Object.is(got, wanted)) {
      if (Number.isFinite(wanted)) largest = Math.max(largest, Math.abs(wanted));
    } else if (!Number.isFinite(got) || !Number.isFinite(wanted)) {
      return Infinity;
    } else {
      difference = Math.max(difference, Math.abs(got - wanted));
      largest = Math.max(largest, Math.abs(wanted));
    }
  }
  return difference === 0 ? 0 : difference / largest;
}

async function sha256(bytes) {
  return [...new Uint8Array(await crypto.subtle.digest("SHA-256", bytes))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

function checkNames(given, known, graph) {
  const unknown = given.filter((name) => !known.includes(name));
  if (unknown.length) throw new Error(`graph '${graph}' has no input ${unknown.join(", ")}; it takes ${known.join(", ")}`);
}

// Half a group of slots would give the base without a word.
function checkGroups(given, slots) {
  const groupOf = (slot) => slot.slice(0, slot.lastIndexOf("."));
  const touched = new Set(given.filter((name) => slots.includes(name)).map(groupOf));
  const lacking = slots.filter((slot) => touched.has(groupOf(slot)) && !given.includes(slot));
  if (lacking.length) throw new Error(`${lacking.join(", ")} missing; all slots of a group are given or none`);
}

function startingWith(tensors, prefix) {
  return Object.fromEntries(Object.entries(tensors).flatMap(([name, tensor]) => (name.startsWith(prefix) ? [[name.slice(prefix.length), tensor]] : [])));
}

// A canvas keeps no colour where a picture is transparent, and Python's reader takes the colour that the file has there.
function withoutAlpha(pixels) {
  const rgb = new Uint8Array((pixels.length / 4) * 3);
  let isClear = false;
  for (let from = 0, to = 0; from < pixels.length; from += 4) {
    rgb[to++] = pixels[from];
    rgb[to++] = pixels[from + 1];
    rgb[to++] = pixels[from + 2];
    isClear ||= pixels[from + 3] < 255;
  }
  if (isClear) console.warn("the picture is transparent in places, where a browser gives other colours than Python's reader; flatten it for the same answer");
  return rgb;
}

function softmax(logits) {
  const largest = Math.max(...logits);
  const powers = logits.map((value) => Math.exp(value - largest));
  const total = powers.reduce((sum, value) => sum + value, 0);
  return powers.map((value) => value / total);
}

// A promise for each key, made at its first use; one that fails is made again.
function once(table, key, make) {
  if (!table.has(key)) {
    const made = make();
    table.set(key, made);
    made.catch(() => table.delete(key));
  }
  return table.get(key);
}
