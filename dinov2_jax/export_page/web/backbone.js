// Worker that runs the model, so that the page stays responsive.
//
// Messages in: {id, pixels, size}, normalised float32 [3, size, size]. Messages out:
// {loading: bytes}, {ready: true}, {id, data, shape, seconds} and {id, failure}.

import * as ort from "./runtime/ort.wasm.min.mjs";

const here = (path) => new URL(path, import.meta.url).href;

ort.env.wasm.numThreads = 1; // several need headers that a static host may not send
ort.env.wasm.wasmPaths = {
  mjs: here("./runtime/ort-wasm-simd-threaded.mjs"),
  wasm: here("./runtime/ort-wasm-simd-threaded.wasm"),
};

const session = load();
session.then(
  () => postMessage({ ready: true }),
  (error) => postMessage({ failure: error.message }),
);

self.onmessage = async ({ data: { id, pixels, size } }) => {
  try {
    const model = await session;
    const start = performance.now();
    const images = new ort.Tensor("float32", pixels, [1, 3, size, size]);
    const { patches } = await model.run({ images }, ["patches"]);
    const seconds = (performance.now() - start) / 1000;
    const { data, dims } = patches;
    postMessage({ id, data, shape: dims.slice(1), seconds }, [data.buffer]);
  } catch (error) {
    postMessage({ id, failure: error.message });
  }
};

async function load() {
  const response = await fetch(here("./model.onnx"));
  if (!response.ok) throw new Error(`model.onnx: HTTP ${response.status}`);
  const parts = [];
  let loading = 0;
  const reader = response.body.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    loading += value.length;
    postMessage({ loading });
  }
  const bytes = new Uint8Array(loading);
  let end = 0;
  for (const part of parts.splice(0)) {
    bytes.set(part, end);
    end += part.length;
  }
  return ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
}
