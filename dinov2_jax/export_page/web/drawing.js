// Pictures of an image's patches on a canvas.

// From black over purple, red and orange to pale yellow, as dinov2_jax.visualize.panels.
const STOPS = [
  [0, 0, 4], [40, 11, 84], [101, 21, 110], [159, 42, 99],
  [212, 72, 66], [245, 125, 21], [250, 193, 39], [252, 255, 164],
];
const MAP_OPACITY = 0.65; // over the photograph in grey
const SCALE = 2; // canvas pixels per image pixel, for sharp frames

/** Maps values to colours from dark (low) to bright (high): Uint8Array [n, 3]. */
export function heat(values, low, high) {
  const colors = new Uint8Array(3 * values.length);
  const span = high > low ? high - low : 1;
  values.forEach((value, i) => {
    const scaled = Math.min(Math.max((value - low) / span, 0), 1) * (STOPS.length - 1);
    const stop = Math.min(Math.floor(scaled), STOPS.length - 2);
    for (let c = 0; c < 3; c++) {
      const [from, to] = [STOPS[stop][c], STOPS[stop + 1][c]];
      colors[3 * i + c] = Math.round(from + (scaled - stop) * (to - from));
    }
  });
  return colors;
}

/** Draws a bar of all colours of `heat`. */
export function drawBar(canvas) {
  const values = Array.from({ length: canvas.width }, (_, x) => x / (canvas.width - 1));
  const context = canvas.getContext("2d");
  heat(values, 0, 1).forEach((_, i, colors) => {
    if (i % 3) return;
    context.fillStyle = rgb(colors, i / 3);
    context.fillRect(i / 3, 0, 1, canvas.height);
  });
}

/** Draws an image, or colours of its patches.
 *
 * @param canvas The canvas.
 * @param image Square RGB image.
 * @param grid {rows, columns} of the patches.
 * @param colors Colours of the patches; null draws the photograph.
 * @param faded Whether the photograph in grey shows through the colours.
 * @param frame {index, dashed} of a patch to frame, or null.
 */
export function draw(canvas, image, grid, { colors = null, faded = false, frame = null }) {
  canvas.width = SCALE * image.width;
  canvas.height = SCALE * image.height;
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(photograph(image, faded), 0, 0, canvas.width, canvas.height);
  const [width, height] = [canvas.width / grid.columns, canvas.height / grid.rows];
  if (colors) {
    context.globalAlpha = faded ? MAP_OPACITY : 1;
    for (let i = 0; i < grid.rows * grid.columns; i++) {
      const [row, column] = [Math.floor(i / grid.columns), i % grid.columns];
      context.fillStyle = rgb(colors, i);
      context.fillRect(column * width, row * height, width, height);
    }
    context.globalAlpha = 1;
  }
  if (frame) {
    const [row, column] = [Math.floor(frame.index / grid.columns), frame.index % grid.columns];
    const box = [column * width - 2, row * height - 2, width + 4, height + 4];
    for (const [color, line] of [["#000", 7], ["#fff", 3]]) {
      context.strokeStyle = color;
      context.lineWidth = line;
      context.setLineDash(frame.dashed && color === "#fff" ? [6, 4] : []);
      context.strokeRect(...box);
    }
  }
}

function photograph(image, grey) {
  const canvas = document.createElement("canvas");
  canvas.width = image.width;
  canvas.height = image.height;
  const data = new ImageData(image.width, image.height);
  for (let i = 0, j = 0; i < image.data.length; i += 3, j += 4) {
    let [red, green, blue] = image.data.subarray(i, i + 3);
    if (grey) red = green = blue = Math.round(0.299 * red + 0.587 * green + 0.114 * blue);
    data.data.set([red, green, blue, 255], j);
  }
  canvas.getContext("2d").putImageData(data, 0, 0);
  return canvas;
}

function rgb(colors, i) {
  return `rgb(${colors[3 * i]} ${colors[3 * i + 1]} ${colors[3 * i + 2]})`;
}
