// Numbers in a box, one after another: rows of features, or arrays that are no picture.

import { element } from "../results.js";

/**
 * Build the box into `host`, and call `changed(row)` with the numbers in it, or `changed(null, reason)`.
 *
 * @param {HTMLElement} host
 * @param {{model: object, examples: number[][], more: HTMLElement, changed: Function}} given
 */
export function numbers(host, { model, examples, more, changed }) {
  const { shape, columns, size } = model.schema;
  const box = element("textarea", { id: "numbers", rows: 8, spellcheck: false, inputMode: "text" });
  const wrong = element("p", { className: "wrong", id: "numbers-wrong" });
  box.setAttribute("aria-labelledby", "input-title");
  box.setAttribute("aria-describedby", "numbers-hint numbers-wrong");
  const update = () => {
    const cells = box.value.split(/[\s,;]+/).filter(Boolean);
    const bad = cells.findIndex((cell) => !Number.isFinite(Number(cell)));
    if (bad >= 0) wrong.textContent = `Number ${bad + 1} is ${cells[bad].slice(0, 40)}, which is none.`;
    else if (cells.length && cells.length !== size) wrong.textContent = `${cells.length} numbers; expected ${size}.`;
    else wrong.textContent = "";
    box.setAttribute("aria-invalid", String(wrong.textContent !== ""));
    if (cells.length && !wrong.textContent) changed(Float32Array.from(cells, Number));
    else changed(null, wrong.textContent || `Enter ${size} numbers.`);
  };
  box.addEventListener("input", update);
  const named = columns.length
    ? `: ${columns.slice(0, 8).join(", ")}${columns.length > 8 ? ", …" : ""}`
    : shape.length > 1
      ? `, of shape ${shape.join(" × ")}`
      : "";
  host.append(box, element("p", { className: "hint", id: "numbers-hint" }, `${size} numbers${named}`), wrong);
  const take = (values) => {
    box.value = values.join(", ");
    update();
  };
  if (examples.length) {
    const buttons = examples.map((values, number) => {
      const button = element("button", { type: "button", className: "plain" }, `Row ${number + 1}`);
      button.addEventListener("click", () => take(values));
      return element("li", {}, button);
    });
    more.append(element("h3", {}, "Try these"), element("ul", { className: "examples" }, ...buttons));
    take(examples[0]);
  } else {
    update();
  }
}
