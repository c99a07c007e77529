// From an image file to the input of the model: the same numbers as
// dinov2_jax.data.preprocessing gives for the same decoded pixels.
//
// An image is {width, height, data}, data a Uint8Array of RGB, row by row.

const MAX_PIXELS = 2 ** 26; // canvases of browsers take about as many
const FRACTION = 2 ** 22; // weights are whole multiples of 1 / FRACTION, as Pillow's are

/** Decodes a file as the browser does: upright, without its colour profile, on white. */
export async function decode(blob) {
  const bitmap = await createImageBitmap(blob, {
    colorSpaceConversion: "none",
    imageOrientation: "from-image",
  });
  const { width, height } = bitmap;
  if (width * height > MAX_PIXELS) {
    bitmap.close();
    throw new Error(`it has ${width} × ${height} pixels, more than ${MAX_PIXELS}`);
  }
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const { data } = context.getImageData(0, 0, width, height);
  const rgb = new Uint8Array(3 * width * height);
  for (let i = 0, j = 0; i < data.length; i += 4) {
    rgb[j++] = data[i];
    rgb[j++] = data[i + 1];
    rgb[j++] = data[i + 2];
  }
  return { width, height, data: rgb };
}

/** Resizes the shorter side to `size` and cuts out the central square. */
export function centralSquare(image, size) {
  const shorter = Math.min(image.width, image.height);
  if (shorter !== size) {
    const [width, height] = [image.width, image.height].map((n) =>
      Math.trunc((size * n) / shorter),
    );
    image = resize(image, width, height);
  }
  const left = roundHalfToEven((image.width - size) / 2);
  const top = roundHalfToEven((image.height - size) / 2);
  const data = new Uint8Array(3 * size * size);
  for (let y = 0; y < size; y++) {
    const start = 3 * ((top + y) * image.width + left);
    data.set(image.data.subarray(start, start + 3 * size), 3 * size * y);
  }
  return { width: size, height: size, data };
}

/** Returns values in [0, 1] minus the mean, by the deviation: Float32Array [3, H, W]. */
export function normalize(image, mean, std) {
  const count = image.width * image.height;
  const result = new Float32Array(3 * count);
  const round = Math.fround; // each step in float32
  for (let channel = 0; channel < 3; channel++) {
    const table = Float32Array.from({ length: 256 }, (_, value) => {
      const centred = round(round(value / 255) - round(mean[channel]));
      return centred / round(std[channel]);
    });
    for (let i = 0; i < count; i++) {
      result[channel * count + i] = table[image.data[3 * i + channel]];
    }
  }
  return result;
}

/** Resizes with antialiased cubic convolution, to the bit as Pillow's BICUBIC. */
export function resize(image, width, height) {
  const { data } = image;
  const stride = 3 * image.width;
  const rows = windows(image.width, width);
  const across = new Uint8Array(3 * width * image.height);
  let j = 0;
  for (let y = 0; y < image.height; y++) {
    for (const { first, weights } of rows) {
      for (let c = 0; c < 3; c++) {
        let sum = FRACTION / 2;
        let i = y * stride + 3 * first + c;
        for (const weight of weights) {
          sum += weight * data[i];
          i += 3;
        }
        across[j++] = clip(sum);
      }
    }
  }
  const result = new Uint8Array(3 * width * height);
  j = 0;
  for (const { first, weights } of windows(image.height, height)) {
    for (let x = 0; x < 3 * width; x++) {
      let sum = FRACTION / 2;
      let i = 3 * width * first + x;
      for (const weight of weights) {
        sum += weight * across[i];
        i += 3 * width;
      }
      result[j++] = clip(sum);
    }
  }
  return { width, height, data: result };
}

/** Returns the input pixels and their weights for each output pixel of a line. */
function windows(length, wanted) {
  const scale = length / wanted;
  const stretch = Math.max(scale, 1);
  return Array.from({ length: wanted }, (_, place) => {
    const center = (place + 0.5) * scale;
    const first = Math.max(Math.trunc(center - 2 * stretch + 0.5), 0);
    const end = Math.min(Math.trunc(center + 2 * stretch + 0.5), length);
    const values = Array.from({ length: end - first }, (_, i) =>
      cubic((i + first - center + 0.5) * (1 / stretch)),
    );
    let total = 0;
    for (const value of values) total += value;
    const weights = values.map((value) => {
      const scaled = (value / total) * FRACTION;
      return Math.trunc(scaled < 0 ? scaled - 0.5 : scaled + 0.5);
    });
    return { first, weights };
  });
}

/** Evaluates Keys' cubic kernel with a = -1/2. */
function cubic(x) {
  const a = -0.5;
  x = Math.abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}

function clip(sum) {
  return Math.min(Math.max(Math.floor(sum / FRACTION), 0), 255);
}

function roundHalfToEven(x) {
  const below = Math.floor(x);
  if (x - below !== 0.5) return Math.round(x);
  return below % 2 ? below + 1 : below;
}
