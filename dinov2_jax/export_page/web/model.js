// The model in its worker: `load` starts it, `run` computes features.

let worker;
let number = 0;
const waiting = new Map(); // id: {resolve, reject}

/** Starts the worker and resolves when the model is ready.
 *
 * @param onProgress Function of the bytes of the model that have arrived.
 */
export function load(onProgress) {
  return new Promise((resolve, reject) => {
    worker = new Worker(new URL("backbone.js", import.meta.url), { type: "module" });
    worker.onerror = (event) => reject(new Error(event.message || "no module workers"));
    worker.onmessage = ({ data }) => {
      if (data.loading) onProgress(data.loading);
      else if (data.ready) resolve();
      else if (data.id === undefined) reject(new Error(data.failure));
      else settle(data);
    };
  });
}

/** Computes features of normalised pixels.
 *
 * @returns A promise of {patches, seconds}; see features.js for patches.
 */
export function run(pixels, size) {
  const id = number++;
  return new Promise((resolve, reject) => {
    waiting.set(id, { resolve, reject });
    worker.postMessage({ id, pixels, size }, [pixels.buffer]);
  });
}

function settle({ id, failure, data, shape, seconds }) {
  const { resolve, reject } = waiting.get(id);
  waiting.delete(id);
  if (failure) return reject(new Error(failure));
  const [rows, columns, width] = shape;
  resolve({ patches: { rows, columns, width, data }, seconds });
}
