// Strokes as the values that a network takes: counted on a bitmap some times as fine. Knows no page.
//
// A stroke is a list of [x, y] from 0 to 1 across the paper, from its left upper corner.

const FINE = 4; // subpixels along a pixel's side: 16 a pixel, as scikit-learn's digits were counted (0 to 16)
const MOST_FINE = 64; // pixels along a side; of larger pictures each is covered in parts instead
const PENS = [0.12, 0.3]; // the thinnest and the thickest, of the height of what is drawn
const PEN_AS_DRAWN = 0.15; // of the paper
const DOT = 0.04; // of the paper: what is smaller is not made larger

/**
 * Return the values of one channel, row by row: `background` where nothing is, `ink` where a pixel is full of it.
 *
 * @param {number[][][]} strokes
 * @param {{height: number, width: number, background: number, ink: number, box: [number, number], covered: number}} spec `box`:
 *   height and width, in pixels, that what is drawn is scaled to fit; `covered`: how many pixels' worth of ink it takes there
 * @param {boolean} fitted whether it is centred and scaled; else it stays where it was drawn
 * @returns {Float32Array} height * width
 */
export function pixelsOf(strokes, spec, fitted) {
  const { height, width, background, ink } = spec;
  const fine = Math.max(height, width) <= MOST_FINE ? FINE : 1;
  const canvas = new OffscreenCanvas(width * fine, height * fine);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const { at, pen } = fitted
    ? placed(strokes, spec)
    : { at: ([x, y]) => [x * width, y * height], pen: PEN_AS_DRAWN * Math.min(height, width) };
  trace(
    context,
    strokes.map((stroke) => stroke.map((point) => at(point).map((value) => value * fine))),
    pen * fine,
  );
  const { data } = context.getImageData(0, 0, width * fine, height * fine);
  const values = new Float32Array(height * width);
  for (let y = 0; y < height * fine; y += 1) {
    for (let x = 0; x < width * fine; x += 1) {
      const alpha = data[4 * (y * width * fine + x) + 3];
      values[Math.floor(y / fine) * width + Math.floor(x / fine)] += fine === 1 ? alpha / 255 : Number(alpha > 127);
    }
  }
  return values.map((covered) => background + (ink - background) * (covered / (fine * fine)));
}

/** Draw strokes as round lines of a width; a stroke of one point is a dot. */
export function trace(context, strokes, width) {
  context.lineWidth = width;
  context.lineCap = context.lineJoin = "round";
  for (const stroke of strokes) {
    context.beginPath();
    context.moveTo(...stroke[0]);
    for (const point of stroke) context.lineTo(...point);
    if (stroke.length === 1) context.lineTo(stroke[0][0] + 0.01, stroke[0][1]); // a line without length is not drawn
    context.stroke();
  }
}

/**
 * Return how points of the paper become places in pixels, so that what is drawn fits the box in the middle, and the pen's width:
 * the shorter the lines the thicker, as in rows that were scaled to one size.
 */
function placed(strokes, { height, width, box: [boxHeight, boxWidth], covered }) {
  const points = strokes.flat();
  const [left, right, top, bottom] = [0, 1].flatMap((axis) => {
    const values = points.map((point) => point[axis] * (axis ? height : width));
    return values.length ? [values.reduce((a, b) => Math.min(a, b)), values.reduce((a, b) => Math.max(a, b))] : [0, 0];
  });
  const isDot = Math.max(right - left, bottom - top) < DOT * Math.max(height, width);
  const [thin, thick] = PENS.map((pen) => pen * boxHeight);
  const fitting = (pen) =>
    Math.min((boxHeight - pen) / Math.max(bottom - top, 1e-6), (boxWidth - pen) / Math.max(right - left, 1e-6));
  const length = strokes.reduce((sum, stroke) => sum + lengthOf(stroke.map(([x, y]) => [x * width, y * height])), 0);
  const pen = Math.min(thick, Math.max(thin, covered / (Math.max(length, 1e-6) * fitting((thin + thick) / 2))));
  const scale = isDot ? 1 : fitting(pen);
  const at = ([x, y]) => [
    width / 2 + (x * width - (left + right) / 2) * scale,
    height / 2 + (y * height - (top + bottom) / 2) * scale,
  ];
  return { at, pen };
}

function lengthOf(points) {
  let length = 0;
  for (let at = 1; at < points.length; at += 1)
    length += Math.hypot(points[at][0] - points[at - 1][0], points[at][1] - points[at - 1][1]);
  return length;
}
