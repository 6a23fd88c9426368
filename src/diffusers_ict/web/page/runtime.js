// onnxruntime-web in a worker: a promise for each message.

// The smallest module that uses SIMD: a function that returns a splat of a constant.
const SIMD = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11];

export const hasWebAssembly = () => typeof WebAssembly === "object" && WebAssembly.validate(new Uint8Array(SIMD));

export class Runtime {
  #worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
  #waiting = new Map();
  #number = 0;

  /** Load a backend, "wasm" or "webgpu", and the model; rejects with a sentence. */
  static async start(backend, { threads, optimization, onBytes = () => {} }) {
    const runtime = new Runtime();
    runtime.backend = backend;
    runtime.#worker.onmessage = ({ data }) => ("coming" in data ? onBytes(data.coming) : runtime.#receive(data));
    runtime.#worker.onerror = () => runtime.#fail("The page could not start its worker.");
    try {
      runtime.threads = (await runtime.#post({ start: { backend, threads, optimization } })).threads;
    } catch (error) {
      runtime.stop();
      throw error;
    }
    return runtime;
  }

  /** f(x, sigma) of a batch, as { image, milliseconds }. dims is [B, C, H, W]; labels are integers, or null. */
  run(x, sigma, labels, dims) {
    return this.#post({ x, sigma, labels, dims });
  }

  stop() {
    this.#worker.terminate();
  }

  #post(message) {
    const id = this.#number++;
    this.#worker.postMessage({ id, ...message });
    return new Promise((resolve, reject) => this.#waiting.set(id, { resolve, reject }));
  }

  #receive({ id, error, ...answer }) {
    const { resolve, reject } = this.#waiting.get(id);
    this.#waiting.delete(id);
    if (error) reject(new Error(error));
    else resolve(answer);
  }

  #fail(sentence) {
    for (const { reject } of this.#waiting.values()) reject(new Error(sentence));
    this.#waiting.clear();
  }
}
