// Mathematics of patch features: cosines and principal components.
//
// Patches are {rows, columns, width, data}, data a Float32Array [rows, columns, width].

const ITERATIONS = 120;

/** Returns the features of a patch. */
export function patchAt(patches, row, column) {
  const start = (row * patches.columns + column) * patches.width;
  return patches.data.subarray(start, start + patches.width);
}

/** Returns the cosine of each patch with a feature: Float32Array [rows * columns]. */
export function cosines(patches, query) {
  const { width, data } = patches;
  const length = Math.sqrt(dot(query, query)) || 1;
  return Float32Array.from({ length: data.length / width }, (_, i) => {
    const patch = data.subarray(i * width, (i + 1) * width);
    return dot(patch, query) / ((Math.sqrt(dot(patch, patch)) || 1) * length);
  });
}

/** Returns the index of the largest value. */
export function largest(values) {
  return values.reduce((best, value, i) => (value > values[best] ? i : best), 0);
}

/** Returns the q-th percentile, between values by linear interpolation. */
export function percentile(values, q) {
  const sorted = Float64Array.from(values).sort();
  const place = (q / 100) * (sorted.length - 1);
  const below = Math.floor(place);
  const above = Math.min(below + 1, sorted.length - 1);
  return sorted[below] + (place - below) * (sorted[above] - sorted[below]);
}

/** Returns three principal components of all images' patches as colours.
 *
 * As dinov2_jax.visualize.pca.joint_colors: each component runs from its 2nd to its 98th
 * percentile, with the sign of a positive skew.
 *
 * @param images Patches of each image.
 * @returns A Uint8Array [rows * columns, 3] for each image.
 */
export function jointColors(images) {
  const width = images[0].width;
  const rows = images.flatMap(({ data }) =>
    Array.from({ length: data.length / width }, (_, i) =>
      Float64Array.from(data.subarray(i * width, (i + 1) * width)),
    ),
  );
  centre(rows, width);
  const axes = principalAxes(rows, width, 3);
  const colors = images.map(({ rows, columns }) => new Uint8Array(3 * rows * columns));
  axes.forEach((axis, channel) => {
    const values = rows.map((row) => dot(row, axis));
    const skew = values.reduce((sum, value) => sum + value ** 3, 0);
    if (skew < 0) values.forEach((value, i) => (values[i] = -value));
    const low = percentile(values, 2);
    const high = percentile(values, 98);
    let next = 0;
    for (const image of colors) {
      for (let i = channel; i < image.length; i += 3) {
        const value = values[next++];
        const scaled = high > low ? (value - low) / (high - low) : 0.5;
        image[i] = Math.round(255 * Math.min(Math.max(scaled, 0), 1));
      }
    }
  });
  return colors;
}

function centre(rows, width) {
  const mean = new Float64Array(width);
  for (const row of rows) for (let i = 0; i < width; i++) mean[i] += row[i];
  for (const row of rows) for (let i = 0; i < width; i++) row[i] -= mean[i] / rows.length;
}

/** Finds the axes of largest variance by orthogonal iteration, from fixed beginnings. */
function principalAxes(rows, width, count) {
  let axes = Array.from({ length: count }, (_, k) =>
    Float64Array.from({ length: width }, (_, i) => Math.sin((k + 1) * (i + 1))),
  );
  for (let step = 0; step < ITERATIONS; step++) {
    const products = axes.map(() => new Float64Array(width));
    for (const row of rows) {
      axes.forEach((axis, k) => add(products[k], row, dot(row, axis)));
    }
    axes = products;
    axes.forEach((axis, k) => {
      for (const other of axes.slice(0, k)) add(axis, other, -dot(axis, other));
      const length = Math.sqrt(dot(axis, axis)) || 1;
      for (let i = 0; i < width; i++) axis[i] /= length;
    });
  }
  return axes;
}

function dot(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}

function add(to, vector, factor) {
  for (let i = 0; i < to.length; i++) to[i] += factor * vector[i];
}
