// The model: what model.json says, f(x, sigma), and batches of images drawn with it.

import { sample } from "./consistency.js";
import { fetched } from "./files.js";
import { Runtime } from "./runtime.js";

const DISAGREEMENT = 0.02; // a runtime that differs more from the stored output is wrong
const MOMENT = 100; // milliseconds that the page may take to change its mind
const LARGEST_BATCH = 20; // larger ones are no faster

export class Model {
  #queue = Promise.resolve();
  #runtime = null;

  /** The model that model.json describes; `start` comes next. */
  static async load() {
    return new Model(await (await fetched("model.json")).json());
  }

  constructor(config) {
    this.config = config;
    this.shape = [config.channels, config.resolution, config.resolution];
    this.size = config.channels * config.resolution ** 2;
  }

  get backend() {
    return this.#runtime.backend;
  }

  /** What computes the images, in words. */
  get runtime() {
    const { backend, threads } = this.#runtime;
    return backend === "webgpu" ? "WebGPU" : `WebAssembly, ${threads} thread${threads === 1 ? "" : "s"}`;
  }

  /** The name of a class, or its number. */
  className = (label) => this.config.class_names?.[label] ?? String(label);

  /** How many images to evaluate at once, so that the page can change its mind between batches. */
  batchSize = 4;

  /** Start a backend. WebGPU replaces WebAssembly only if it reproduces the stored output of the pipeline. */
  start(backend, options) {
    return this.#inTurn(async () => {
      // The file is exported in an optimised form: optimising it again takes longer than it saves, but for the casts
      // of fp16 weights, which "basic" does once and for all.
      const wasm = this.config.weights === "fp16" ? "basic" : "disabled";
      const runtime = await Runtime.start(backend, { optimization: backend === "wasm" ? wasm : "all", ...options });
      if (backend === "webgpu" && !(await this.#agrees(runtime).catch(() => false))) {
        runtime.stop();
        throw new Error("Its images differ from those of the pipeline.");
      }
      this.#runtime?.stop();
      this.#runtime = runtime;
    });
  }

  async #agrees(runtime) {
    const { file, sigma, class_label: label } = this.config.check;
    const stored = new Float32Array(await (await fetched(file)).arrayBuffer());
    const [x, expected] = [stored.slice(0, this.size), stored.slice(this.size)];
    const { image } = await runtime.run(x, sigma, label === null ? null : [label], [1, ...this.shape]);
    return image.every((value, i) => Math.abs(Math.min(1, Math.max(-1, value)) - expected[i]) <= DISAGREEMENT);
  }

  /** Run a task once those before it have ended. */
  #inTurn(task) {
    const turn = this.#queue.then(task);
    this.#queue = turn.catch(() => {});
    return turn;
  }

  /** f(x, sigma) of a batch, as { image, milliseconds }. What was aborted while it waited never starts. */
  evaluate(x, sigma, labels = null, signal = null) {
    return this.#inTurn(async () => {
      signal?.throwIfAborted();
      const count = x.length / this.size;
      const answer = await this.#runtime.run(x, sigma, labels, [count, ...this.shape]);
      if (count >= this.batchSize && answer.milliseconds < MOMENT) this.batchSize *= 2;
      if (count <= this.batchSize && answer.milliseconds > 2 * MOMENT) this.batchSize /= 2;
      this.batchSize = Math.min(LARGEST_BATCH, Math.max(1, Math.round(this.batchSize)));
      signal?.throwIfAborted();
      return answer;
    });
  }

  /** Draw a batch, as { images, milliseconds }. Options are those of `sample`, with labels and an AbortSignal. */
  async draw({ labels = null, signal = null, ...options }) {
    let milliseconds = 0;
    const evaluate = async (x, sigma) => {
      const answer = await this.evaluate(x, sigma, labels, signal);
      milliseconds += answer.milliseconds;
      return answer.image;
    };
    const images = await sample(evaluate, { sigmaMin: this.config.sigma_min, ...options });
    return { images, milliseconds };
  }
}
