// A form with a field a column, as the model's encoder says: numbers, categories, truth values, times. Values go on as texts, and
// what the model refuses is said beside the field.

import { readTime } from "../core/cells.js";
import { TimeFormat } from "../core/strptime.js";
import { element, plain } from "../results.js";

const MOST_OPTIONS = 40; // of a list to choose from; of more categories the text is typed, with suggestions
const TRUTH = [
  ["false", "true"],
  ["no", "yes"],
  ["n", "y"],
  ["f", "t"],
  ["0", "1"],
  ["off", "on"],
];
// Seconds that all times of a column are a multiple of, and how many characters of ISO 8601 such times take.
const TIMES = [
  [86400, 10],
  [60, 16],
  [1, 19],
  [0.001, 23],
];

/**
 * Build the form into `host`, and call `changed(row)` with each new row: an object with a text or null (not known) a column.
 *
 * @param {HTMLElement} host
 * @param {{model: object, changed: (row: object) => void}} given
 * @returns {(problems: {column: string, message: string}[]) => void} shows what is wrong with fields
 */
export function table(host, { model, changed }) {
  const { columns, decimal = "." } = model.card.input.encoder;
  const fields = columns.map((column, number) => new Field(column, `field-${number}`, decimal));
  const form = element(
    "form",
    { className: "fields", autocomplete: "off", noValidate: true },
    ...fields.map((field) => field.host),
  );
  const update = () => changed(Object.fromEntries(fields.map((field) => [field.name, field.value])));
  const fill = (random) => {
    for (const field of fields) field.fill(random);
    update();
  };
  const typical = element("button", { type: "button" }, "Typical values");
  const random = element("button", { type: "button" }, "Random values");
  typical.addEventListener("click", () => fill(false));
  random.addEventListener("click", () => fill(true));
  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  host.append(form, element("p", { className: "hint" }, "What is left empty counts as not known."));
  host.append(element("div", { className: "tools" }, typical, random));
  fill(false);
  return (problems) => {
    for (const field of fields) field.tell(problems.filter((each) => each.column === field.name).map((each) => each.message));
  };
}

class Field {
  constructor(column, id, decimal) {
    Object.assign(this, { column, name: column.name });
    this.wrong = element("p", { className: "wrong", id: `${id}-wrong` });
    const hint = element("p", { className: "hint", id: `${id}-hint` });
    const made = { numeric: numberInput, category: categoryInput, date: dateInput }[column.kind](column, id, decimal);
    Object.assign(this, made);
    hint.textContent = [made.range, column.missing === "allow" ? "" : "must be known"].filter(Boolean).join("; ");
    hint.hidden = !hint.textContent;
    made.input.id = id;
    made.input.setAttribute("aria-describedby", `${id}-hint ${id}-wrong`);
    const label = element("label", { htmlFor: id }, element("bdi", {}, column.name));
    const control = made.input.type === "checkbox" ? element("span", { className: "check" }, made.input) : made.input;
    this.host = element("div", { className: "field" }, label, control, ...(made.beside ?? []), hint, this.wrong);
  }

  /** The cell: a text, or null where it is not known. */
  get value() {
    if (this.input.type === "checkbox") return this.choices[Number(this.input.checked)];
    return this.input.value.trim() === "" ? null : this.input.value;
  }

  /** Put in what is typical of the training rows, or something at random between their least and greatest, where that is known. */
  fill(random) {
    if (this.input.type === "checkbox") this.input.checked = random ? Math.random() < 0.5 : this.typical() === this.choices[1];
    else this.input.value = (random ? this.random() : this.typical()) ?? this.input.value;
  }

  tell(messages) {
    this.wrong.textContent = messages.map((message) => /; (expected [^;]*)$/.exec(message)?.[1] ?? message).join("; ");
    this.input.setAttribute("aria-invalid", String(messages.length > 0));
  }
}

function numberInput({ fill, low, high }, _, decimal) {
  const isWhole = [fill, low, high].every(Number.isInteger);
  const written = (value) => String(Math.min(high, Math.max(low, value))).replace(".", decimal);
  const typical = () => written(Number(fill.toPrecision(6)));
  const random = () => {
    const value = low + Math.random() * (high - low);
    return written(isWhole ? Math.round(value) : Number(value.toPrecision(4)));
  };
  // Of type text: what is typed into one of type number, and is none, is lost before anything can be said of it.
  const input = element("input", { type: "text", inputMode: low >= 0 ? "decimal" : "text", spellcheck: false });
  return { input, range: [low, high].map((value) => plain(value).replace(".", decimal)).join(" to "), typical, random };
}

function categoryInput(column, id) {
  const seen = [...column.categories, ...column.rare];
  const pick = (list) => list[Math.floor(Math.random() * list.length)];
  const fills = { typical: () => column.categories[0], random: () => pick(column.categories) }; // none of hashed categories
  const truth = truthOf(column);
  if (truth) return { input: element("input", { type: "checkbox" }), choices: truth, range: `ticked: ${truth[1]}`, ...fills };
  if (!column.categories.length || seen.length > MOST_OPTIONS) {
    const input = element("input", { type: "text", spellcheck: false });
    input.setAttribute("list", `${id}-known`);
    const options = seen.slice(0, 1000).map((value) => element("option", { value }));
    return { input, beside: [element("datalist", { id: `${id}-known` }, ...options)], range: "", ...fills };
  }
  const option = (value, label = value) => element("option", { value }, label);
  const input = element("select", {}, ...column.categories.map((value) => option(value)));
  if (column.rare.length) input.append(element("optgroup", { label: "rare" }, ...column.rare.map((value) => option(value))));
  if (column.unknown === "allow") input.append(option(unlike(seen), "another one"));
  if (column.missing === "allow") input.append(option("", "not known"));
  return { input, range: "", ...fills };
}

/** Return the two texts of a column of truth values, false first; null where it is none, or training had other cells. */
function truthOf(column) {
  if (column.categories.length !== 2 || column.rare.length || column.missing_place || column.unknown_place) return null;
  for (const words of TRUTH) {
    const found = words.map((word) => column.categories.find((text) => text.toLowerCase() === word));
    if (found.every((text) => text !== undefined)) return found;
  }
  return null;
}

/** Return a text that is none of those. */
function unlike(texts) {
  let text = "another one";
  while (texts.includes(text)) text += "_";
  return text;
}

function dateInput({ formats, fill, low, high }) {
  const [unit, size] = TIMES.find(([seconds]) => [low, high].every((second) => second % seconds === 0)) ?? TIMES.at(-1);
  const iso = (second) => new Date(1000 * second).toISOString().slice(0, size);
  const written = formats.length ? inFormat(formats, low, high) : iso;
  const range = [low, high].map((second) => written(second) ?? iso(second)).join(" to ");
  const fills = { typical: () => written(fill), random: () => written(low + Math.random() * (high - low)) };
  if (formats.length) {
    return { input: element("input", { type: "text", spellcheck: false }), range: `${formats.join(" or ")}; ${range}`, ...fills };
  }
  const input = element("input", size === 10 ? { type: "date" } : { type: "datetime-local", step: String(unit) });
  return { input, range: range.replaceAll("T", " "), ...fills };
}

/** Return the function that writes a time by the first format by which it is read between low and high, null where none is. */
function inFormat(formats, low, high) {
  const known = formats.map((format) => new TimeFormat(format));
  const isWithin = (read) => typeof read === "number" && read >= low && read <= high;
  return (second) =>
    known.map((format) => format.written(second)).find((text) => isWithin(readTime(text, new Set(), known))) ?? null;
}
