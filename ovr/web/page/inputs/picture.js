// A picture to draw, by mouse, pen, finger or keyboard, or to take from the model's examples or from a file.

import { element } from "../results.js";
import { pixelsOf, trace } from "./strokes.js";

const SIDE = 560; // of the paper, in its own pixels
const LINE = 0.08; // of the paper's side: how thick a stroke is shown
const STEPS = 16; // of the keyboard's cursor across the paper
const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const KEYS =
  "With the keyboard: the arrow keys move the pen, Space or Enter puts it down and lifts it, Delete clears, Z takes a stroke back.";

/**
 * Build the input into `host` and what helps beside it into `more`, and call `changed(row)` with each new row, null for none.
 *
 * @param {HTMLElement} host
 * @param {{settings: object, model: object, examples: number[][], more: HTMLElement, changed: Function}} given `settings`: see
 *   `strokes.js`, and `channels`, `low`, `high` of the values; with an encoder of its own the model takes files too
 */
export function picture(host, { settings, model, examples, more, changed }) {
  const { height, width, channels } = settings;
  const paper = element("canvas", {
    className: "paper",
    id: "paper",
    tabIndex: 0,
    role: "application",
    "aria-label": "Paper to draw on",
  });
  paper.setAttribute("aria-describedby", "keys");
  paper.width = Math.round(SIDE * Math.min(1, width / height));
  paper.height = Math.round(SIDE * Math.min(1, height / width));
  paper.style.setProperty("--ratio", Math.min(1, width / height));
  const seen = element("canvas", { className: "pixels", width, height, role: "img", "aria-label": "What the model gets" });
  const undo = element("button", { type: "button" }, "Undo");
  const clear = element("button", { type: "button" }, "Clear");
  const fit = element("input", { type: "checkbox", id: "fit", checked: true });
  const told = element("p", { className: "unseen", role: "status" });
  const state = { strokes: [], pixels: null, pen: null, cursor: null, pointer: null };

  const size = `${height} × ${width}${channels > 1 ? ` × ${channels}` : ""} values from ${settings.low} to ${settings.high}`;
  host.append(
    paper,
    element("div", { className: "tools" }, undo, clear, element("label", { className: "check" }, fit, "Centre and scale")),
    told,
  );
  more.append(
    element("div", { className: "seen" }, seen, element("p", { className: "hint" }, `What the model gets: ${size}.`)),
    element("p", { className: "hint", id: "keys" }, KEYS),
  );

  const row = () => state.pixels ?? repeated(pixelsOf(state.strokes, settings, fit.checked), channels);
  const update = () => {
    const values = row();
    paint(seen, values, settings);
    draw();
    const isEmpty = state.strokes.length === 0 && state.pixels === null;
    undo.disabled = clear.disabled = isEmpty;
    if (isEmpty) changed(null, "Nothing is drawn yet.");
    else changed(values);
  };

  function draw() {
    const context = paper.getContext("2d");
    const { color } = getComputedStyle(paper);
    context.clearRect(0, 0, paper.width, paper.height);
    if (state.pixels) {
      context.imageSmoothingEnabled = false;
      context.drawImage(seen, 0, 0, paper.width, paper.height);
    }
    context.strokeStyle = color;
    const scaled = state.strokes.map((stroke) => stroke.map(([x, y]) => [x * paper.width, y * paper.height]));
    trace(context, scaled, LINE * Math.min(paper.width, paper.height));
    if (state.cursor && document.activeElement === paper) drawCursor(context);
  }

  function drawCursor(context) {
    const [x, y] = [state.cursor[0] * paper.width, state.cursor[1] * paper.height];
    context.save();
    context.lineWidth = 4;
    context.strokeStyle = getComputedStyle(document.documentElement).getPropertyValue("--first");
    context.beginPath();
    context.arc(x, y, state.pen ? 12 : 20, 0, 2 * Math.PI);
    context.stroke();
    context.restore();
  }

  function begin(point) {
    if (state.pixels) state.strokes = [];
    state.pixels = null;
    state.strokes.push([point]);
  }

  // With no pointer: one that is still down draws again once it was lifted and put down.
  const lifted = { pen: null, pointer: null };

  function reset() {
    Object.assign(state, { strokes: [], pixels: null, ...lifted });
    update();
  }

  const place = (event) => {
    const { left, top, width: wide, height: high } = paper.getBoundingClientRect();
    return [(event.clientX - left) / wide, (event.clientY - top) / high];
  };
  paper.addEventListener("pointerdown", (event) => {
    if (state.pointer !== null || event.button !== 0) return;
    event.preventDefault();
    paper.focus({ preventScroll: true });
    paper.setPointerCapture(event.pointerId);
    Object.assign(state, { pointer: event.pointerId, pen: null, cursor: null });
    begin(place(event));
    update();
  });
  paper.addEventListener("pointermove", (event) => {
    if (event.pointerId !== state.pointer) return;
    const events = event.getCoalescedEvents?.() ?? [];
    state.strokes.at(-1).push(...(events.length ? events : [event]).map(place));
    update();
  });
  for (const name of ["pointerup", "pointercancel"]) {
    paper.addEventListener(name, (event) => {
      if (event.pointerId === state.pointer) state.pointer = null;
    });
  }

  paper.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const move = MOVES[event.key];
    state.cursor ??= [0.5, 0.5];
    if (move) {
      state.cursor = state.cursor.map((value, axis) => Math.min(1, Math.max(0, value + move[axis] / STEPS)));
      if (state.pen) state.strokes.at(-1).push(state.cursor);
    } else if (event.key === " " || event.key === "Enter") {
      Object.assign(state, { ...lifted, pen: !state.pen });
      if (state.pen) begin(state.cursor);
      told.textContent = state.pen ? "Pen down" : "Pen up";
    } else if (event.key === "Delete" || event.key === "Backspace") {
      reset();
      told.textContent = "Cleared";
    } else if (event.key === "z" || event.key === "Z") {
      undo.click();
    } else {
      return;
    }
    event.preventDefault();
    if (state.pen || !move) update();
    else draw();
  });
  paper.addEventListener("blur", () => {
    state.pen = null;
    draw();
  });
  clear.addEventListener("click", reset);
  undo.addEventListener("click", () => {
    Object.assign(state, { pixels: null, ...lifted });
    state.strokes.pop();
    update();
  });
  fit.addEventListener("change", update);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    paint(seen, row(), settings);
    draw();
  });

  const take = (values) => {
    Object.assign(state, { strokes: [], pixels: Float32Array.from(values), ...lifted });
    update();
  };
  if (model.encoder) more.append(...fileInput((pixels) => model.encode([pixels]), take));
  if (examples.length) more.append(element("h3", {}, "Try these"), exampleList(examples, settings, take));
  update();
}

function exampleList(examples, settings, take) {
  const buttons = examples.map((values, number) => {
    const thumb = element("canvas", { className: "pixels", width: settings.width, height: settings.height });
    paint(thumb, values, settings);
    const button = element("button", { type: "button", "aria-label": `Example ${number + 1}` }, thumb);
    button.addEventListener("click", () => take(values));
    return element("li", {}, button);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    buttons.forEach((item, number) => paint(item.querySelector("canvas"), examples[number], settings));
  });
  return element("ul", { className: "examples" }, ...buttons);
}

function fileInput(encode, take) {
  const input = element("input", { type: "file", accept: "image/*", id: "file" });
  const wrong = element("p", { className: "wrong", role: "alert" });
  input.addEventListener("change", async () => {
    wrong.textContent = "";
    if (!input.files.length) return;
    try {
      take(encode(await pixelsOfFile(input.files[0])));
    } catch (error) {
      wrong.textContent = `${input.files[0].name} cannot be taken: ${error.message}`;
    }
  });
  return [element("h3", {}, element("label", { htmlFor: "file" }, "Or a picture from a file")), input, wrong];
}

/** Return the pixels of a picture's file, as the model's encoder takes them. */
async function pixelsOfFile(file) {
  const bitmap = await createImageBitmap(file, { premultiplyAlpha: "none", colorSpaceConversion: "none" });
  const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, bitmap.width, bitmap.height);
}

/** Return one channel's values, once for each channel. */
function repeated(values, channels) {
  const all = new Float32Array(values.length * channels);
  for (let channel = 0; channel < channels; channel += 1) all.set(values, channel * values.length);
  return all;
}

/** Draw values onto a canvas of as many pixels: grey ones as ink on the page's own paper, others in their colours. */
function paint(canvas, values, { height, width, channels, low, high, background, ink }) {
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  const [red, green, blue] = getComputedStyle(document.body).color.match(/\d+/g).map(Number);
  const span = high - low || 1;
  for (let at = 0; at < height * width; at += 1) {
    const colour = [0, 1, 2].map((channel) => (255 * (values[channel * height * width + at] - low)) / span);
    const covered = (255 * (values[at] - background)) / (ink - background || 1);
    image.data.set(channels === 1 ? [red, green, blue, covered] : [...colour, 255], 4 * at);
  }
  context.putImageData(image, 0, 0);
}
