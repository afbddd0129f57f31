// Images as a browser has them - pixels of a canvas - as the network takes them, as in `ovr.input.image`. No file is decoded here.
//
// C = channels (1 grey, 3 red, green and blue), H = height, W = width

import { ArtifactError, InputError } from "./errors.js";
import { repr, shortRepr, tuple, typeName } from "./python_words.js";
import { resized } from "./resample.js";
import { checkRows, InputSchema } from "./schema.js";

const MODES = { grey: 1, rgb: 3 };
const FITS = ["stretch", "crop", "pad"];
const RESAMPLES = ["nearest", "bilinear", "bicubic", "lanczos"];
const MAX_PIXELS = 100_000_000;
const MAX_SIDE = 65_536;

/** Encodes images as (C, H, W), 0 to 255. */
export class ImageEncoder {
  constructor(settings) {
    for (const name of ["height", "width"]) {
      if (!Number.isInteger(settings[name]) || settings[name] < 1 || settings[name] > MAX_SIDE) {
        throw unreadable(
          `the ${name} of images is ${repr(settings[name])}; expected a whole number of pixels from 1 to ${MAX_SIDE}`,
        );
      }
    }
    for (const [name, known] of [
      ["mode", Object.keys(MODES)],
      ["fit", FITS],
      ["resample", RESAMPLES],
    ]) {
      if (!known.includes(settings[name])) {
        throw unreadable(`the ${name} of images is ${repr(settings[name])}; expected one of ${known.join(", ")}`);
      }
    }
    const { background } = settings;
    if (!Number.isInteger(background) || background < 0 || background > 255) {
      throw unreadable(`the background of images is ${repr(background)}; expected a grey level from 0 to 255`);
    }
    Object.assign(this, settings);
    this.tensor = new InputSchema([MODES[this.mode], this.height, this.width]);
  }

  /** Return the encoder of a model card. */
  static fromJson({ kind: _kind, ...settings }) {
    return new ImageEncoder({ mode: "rgb", fit: "stretch", resample: "bilinear", background: 255, ...settings });
  }

  /**
   * Return images as one Float32Array of (B, C, H, W).
   *
   * @param {Array} rows `{width, height, data}` with (H', W', 4) bytes of red, green, blue and opacity, as ImageData; or what
   *   `encode` returns for one
   * @throws {InputError} one of them is neither, naming its row
   */
  encode(rows) {
    if (!Array.isArray(rows))
      throw new InputError(`rows are ${typeName(rows)}; expected a list of images, or an array with an image a row`);
    if (!rows.length) throw new InputError("got no rows; expected at least one");
    const x = new Float32Array(rows.length * this.tensor.size);
    rows.forEach((row, number) => {
      try {
        x.set(this._tensor(row), number * this.tensor.size);
      } catch (error) {
        if (!(error instanceof InputError)) throw error;
        throw new InputError(`row ${number} ${error.message}`, error.column);
      }
    });
    return x;
  }

  /** Return an image of pixels as it is encoded: `{width, height, channels, data}`, fitted. */
  pixels({ width, height, data }) {
    return this._fitted(flattened(width, height, data, this.mode, this.background));
  }

  _tensor(row) {
    if (Array.isArray(row) || ArrayBuffer.isView(row)) return checkRows([row], this.tensor);
    checkImage(row);
    const { channels, data } = this.pixels(row);
    const plane = this.height * this.width;
    const x = new Float32Array(channels * plane);
    for (let at = 0; at < data.length; at += 1) x[(at % channels) * plane + Math.floor(at / channels)] = data[at];
    return x;
  }

  _fitted(image) {
    if (this.fit === "crop") return cropped(image, this.width, this.height, this.resample);
    if (this.fit === "pad") return padded(image, this.width, this.height, this.resample, this.background);
    return resized(image, this.width, this.height, this.resample);
  }
}

function unreadable(message) {
  return new ArtifactError(`the image encoder cannot be read: ${message}`);
}

function checkImage(row) {
  const { width, height, data } = row ?? {};
  if (!Number.isInteger(width) || !Number.isInteger(height) || !ArrayBuffer.isView(data)) {
    throw new InputError(`is ${typeName(row)} ${shortRepr(row)}; expected {width, height, data} as ImageData, or an array`);
  }
  if (width * height > MAX_PIXELS) throw new InputError(`declares ${width}x${height} pixels; expected at most 100,000,000`);
  const isBytes = data instanceof Uint8Array || data instanceof Uint8ClampedArray;
  if (!isBytes || width < 1 || height < 1 || data.length !== 4 * width * height) {
    throw new InputError(
      `is ${data.length} values of ${data.constructor.name} for ${width}x${height} pixels; an image has 4 bytes a pixel, ` +
        `${tuple([height, width, 4])}, channels last`,
    );
  }
}

/** Return pixels over an opaque background, grey or in colours. */
function flattened(width, height, data, mode, background) {
  const channels = MODES[mode];
  const out = new Uint8Array(width * height * channels);
  const [pixel, over] = [[0, 0, 0], background];
  for (let at = 0; at < width * height; at += 1) {
    const alpha = data[4 * at + 3];
    for (let c = 0; c < 3; c += 1) pixel[c] = alpha === 0 ? over : blended(data[4 * at + c], over, alpha);
    if (channels === 3) out.set(pixel, 3 * at);
    else out[at] = (pixel[0] * 19595 + pixel[1] * 38470 + pixel[2] * 7471 + 0x8000) >> 16;
  }
  return { width, height, channels, data: out };
}

function blended(value, over, alpha) {
  const sum = value * (alpha << 7) + over * ((255 - alpha) << 7) + (0x80 << 7);
  return (((sum >> 8) + sum) >> 8) >> 7;
}

function cropped(image, width, height, method) {
  const [ratio, wanted] = [image.width / image.height, width / height];
  let [cropWidth, cropHeight] = [image.width, image.height];
  if (ratio !== wanted) {
    if (ratio >= wanted) cropWidth = wanted * image.height;
    else cropHeight = image.width / wanted;
  }
  const [left, top] = [(image.width - cropWidth) * 0.5, (image.height - cropHeight) * 0.5];
  return resized(image, width, height, method, [left, top, left + cropWidth, top + cropHeight]);
}

function padded(image, width, height, method, background) {
  const [ratio, wanted] = [image.width / image.height, width / height];
  let [widthIn, heightIn] = [width, height];
  if (ratio > wanted) heightIn = roundedEven((image.height / image.width) * width);
  else if (ratio < wanted) widthIn = roundedEven((image.width / image.height) * height);
  const inner = resized(image, widthIn, heightIn, method);
  if (widthIn === width && heightIn === height) return inner;
  const { channels } = image;
  const out = new Uint8Array(width * height * channels).fill(background);
  const left = widthIn !== width ? roundedEven((width - widthIn) * 0.5) : 0;
  const top = widthIn !== width ? 0 : roundedEven((height - heightIn) * 0.5);
  for (let y = 0; y < inner.height; y += 1) {
    const line = inner.data.subarray(y * widthIn * channels, (y + 1) * widthIn * channels);
    out.set(line, ((top + y) * width + left) * channels);
  }
  return { width, height, channels, data: out };
}

/** Return the nearest whole number, of two the even one, as Python's `round`. */
function roundedEven(value) {
  const floor = Math.floor(value);
  if (value - floor !== 0.5) return Math.round(value);
  return floor % 2 === 0 ? floor : floor + 1;
}
