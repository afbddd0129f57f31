// Images made smaller or larger with pillow's own whole-number arithmetic, so that every pixel is the same.
//
// An image is `{width, height, channels, data}`: a Uint8Array of (height, width, channels).

const PRECISION_BITS = 32 - 8 - 2;
const ROUND = 1 << (PRECISION_BITS - 1);

const FILTERS = {
  bilinear: { support: 1, at: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: { support: 2, at: (x) => cubic(Math.abs(x)) },
  lanczos: { support: 3, at: (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0) },
};

/**
 * Return an image, or the part of it in a box, in another size, as pillow's `Image.resize(size, method, box)`.
 *
 * @param {object} image
 * @param {number} width
 * @param {number} height
 * @param {"nearest"|"bilinear"|"bicubic"|"lanczos"} method
 * @param {number[]} box left, top, right, bottom
 */
export function resized(image, width, height, method, box = [0, 0, image.width, image.height]) {
  if (width === 0 || height === 0) return { width, height, channels: image.channels, data: new Uint8Array(0) };
  const [left, top, right, bottom] = box.map(Math.fround);
  const isWholeX = left === 0 && right === image.width;
  const isWholeY = top === 0 && bottom === image.height;
  if (isWholeX && isWholeY && width === image.width && height === image.height) return image;
  if (method === "nearest") return nearest(image, width, height, [left, top, right, bottom]);
  const across = (from) => resampledAcross(from, width, weights(image.width, left, right, width, FILTERS[method]));
  const down = (from) => resampledDown(from, height, weights(image.height, top, bottom, height, FILTERS[method]));
  const passes = [];
  if (width !== image.width || left !== 0 || right !== width) passes.push(across);
  if (height !== image.height || top !== 0 || bottom !== height) passes.push(down);
  // From pillow 13 on what is made much less high is made so first; each pass rounds, so the order counts.
  if (height < image.height && image.height - height > 2 * (image.width - width)) passes.reverse();
  return passes.reduce((from, pass) => pass(from), image);
}

/** Return for each place the first pixel that counts and the weights from it on, in whole numbers of 2**-22. */
function weights(sizeIn, start, end, sizeOut, filter) {
  const scale = Math.fround(end - start) / sizeOut;
  const filterScale = Math.max(scale, 1);
  const support = filter.support * filterScale;
  const inverse = 1 / filterScale;
  return Array.from({ length: sizeOut }, (_, place) => {
    const center = start + (place + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - support + 0.5));
    const count = Math.min(sizeIn, Math.trunc(center + support + 0.5)) - first;
    const exact = Array.from({ length: Math.max(0, count) }, (_unused, x) => filter.at((x + first - center + 0.5) * inverse));
    const total = exact.reduce((sum, weight) => sum + weight, 0);
    const scaled = exact.map((weight) => (total !== 0 ? weight / total : weight) * (1 << PRECISION_BITS));
    return { first, factors: Int32Array.from(scaled, (weight) => Math.trunc(weight < 0 ? weight - 0.5 : weight + 0.5)) };
  });
}

function resampledAcross({ width, height, channels, data }, widthOut, places) {
  const out = new Uint8Array(widthOut * height * channels);
  for (let y = 0; y < height; y += 1) {
    for (let x = 0; x < widthOut; x += 1) {
      const { first, factors } = places[x];
      for (let c = 0; c < channels; c += 1) {
        let sum = ROUND;
        for (let k = 0; k < factors.length; k += 1) sum += data[(y * width + first + k) * channels + c] * factors[k];
        out[(y * widthOut + x) * channels + c] = clipped(sum);
      }
    }
  }
  return { width: widthOut, height, channels, data: out };
}

function resampledDown({ width, channels, data }, heightOut, places) {
  const out = new Uint8Array(width * heightOut * channels);
  const line = width * channels;
  for (let y = 0; y < heightOut; y += 1) {
    const { first, factors } = places[y];
    for (let at = 0; at < line; at += 1) {
      let sum = ROUND;
      for (let k = 0; k < factors.length; k += 1) sum += data[(first + k) * line + at] * factors[k];
      out[y * line + at] = clipped(sum);
    }
  }
  return { width, height: heightOut, channels, data: out };
}

function nearest({ width, height, channels, data }, widthOut, heightOut, [left, top, right, bottom]) {
  const out = new Uint8Array(widthOut * heightOut * channels);
  const columns = positions(left, right, widthOut);
  positions(top, bottom, heightOut).forEach((yIn, y) => {
    if (yIn < 0 || yIn >= height) return;
    columns.forEach((xIn, x) => {
      if (xIn < 0 || xIn >= width) return;
      for (let c = 0; c < channels; c += 1) out[(y * widthOut + x) * channels + c] = data[(yIn * width + xIn) * channels + c];
    });
  });
  return { width: widthOut, height: heightOut, channels, data: out };
}

function positions(start, end, size) {
  const step = Math.fround(end - start) / size;
  let at = start + step * 0.5;
  return Array.from({ length: size }, () => {
    const position = at < 0 ? -1 : Math.trunc(at);
    at += step; // added up, as pillow does
    return position;
  });
}

function clipped(sum) {
  const value = sum >> PRECISION_BITS;
  return value < 0 ? 0 : value > 255 ? 255 : value;
}

function cubic(x) {
  const a = -0.5;
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

function sinc(x) {
  return x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI);
}
