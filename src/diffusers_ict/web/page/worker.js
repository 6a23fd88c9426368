// onnxruntime-web in a thread of its own, so that the page stays responsive. Messages in: { id, start } or
// { id, x, sigma, labels, dims }; out: { id, ... } or { id, error }, and { coming }, the bytes of a file that begins.

import { fetched } from "./files.js";

const RUNTIMES = {
  wasm: ["ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"],
  webgpu: ["ort.webgpu.bundle.min.mjs", "ort-wasm-simd-threaded.asyncify.wasm"],
};

let ort, session;

/** The bytes of a file, announced before they come. */
async function bytes(path) {
  const response = await fetched(path);
  postMessage({ coming: Number(response.headers.get("content-length")) });
  return response.arrayBuffer();
}

async function start({ backend, threads, optimization }) {
  const [script, wasm] = RUNTIMES[backend].map((name) => `runtime/${name}`);
  const missing = () => {
    throw new Error(`The page could not fetch ${script}.`);
  };
  const [runtime, binary, model] = await Promise.all([import(`./${script}`).catch(missing), bytes(wasm), bytes("model.onnx")]);
  ort = runtime;
  ort.env.logLevel = "error";
  ort.env.wasm.wasmBinary = binary;
  if (threads) ort.env.wasm.numThreads = threads;
  session = await ort.InferenceSession.create(new Uint8Array(model), {
    executionProviders: [backend],
    graphOptimizationLevel: optimization,
  });
  return { threads: self.crossOriginIsolated ? ort.env.wasm.numThreads : 1 };
}

async function evaluate({ x, sigma, labels, dims }) {
  const feeds = {
    x: new ort.Tensor("float32", x, dims),
    sigma: new ort.Tensor("float32", new Float32Array(dims[0]).fill(sigma), [dims[0]]),
  };
  if (labels) feeds.class_labels = new ort.Tensor("int64", BigInt64Array.from(labels, BigInt), [dims[0]]);
  const before = performance.now();
  const { image } = await session.run(feeds);
  return { image: (await image.getData()).slice(), milliseconds: performance.now() - before };
}

onmessage = async ({ data }) => {
  try {
    const answer = await (data.start ? start(data.start) : evaluate(data));
    postMessage({ id: data.id, ...answer }, answer.image ? [answer.image.buffer] : []);
  } catch (error) {
    postMessage({ id: data.id, error: error.message ?? String(error) });
  }
};
