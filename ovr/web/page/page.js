// The page: loads the model that lies beside it, shows the input that it takes, and what it says of each row.

import * as ort from "./ort/ort.wasm.bundle.min.js";
import { InputError } from "./core/errors.js";
import { load } from "./core/model.js";
import { numbers } from "./inputs/numbers.js";
import { picture } from "./inputs/picture.js";
import { table } from "./inputs/table.js";
import { text } from "./inputs/text.js";
import { Results, element, isolated, plain } from "./results.js";

const INPUTS = { numbers, picture, table, text };
const TITLES = { numbers: "Enter numbers", picture: "Draw", table: "Enter a row", text: "Enter a text" };
const NAMES_IN_TITLE = 6;
const HEADS = 500; // whose versions are listed
const FIELDS = 6; // that one message names

const find = (id) => document.getElementById(id);

/** Return the bytes of a file beside the page. */
async function bytesOf(name) {
  const response = await fetch(name, { cache: "no-cache" });
  if (!response.ok) throw new Error(`${name} cannot be read: the server answers ${response.status}`);
  return new Uint8Array(await response.arrayBuffer());
}

async function jsonOf(name) {
  return JSON.parse(new TextDecoder().decode(await bytesOf(name)));
}

/** Return the names of some classes: "cat, dog, owl and 97 more". */
function titleOf(names) {
  const first = names.slice(0, names.length <= 2 * NAMES_IN_TITLE ? names.length : NAMES_IN_TITLE);
  const rest = names.length - first.length;
  if (rest > 0) return `${first.join(", ")} and ${rest} more`;
  return first.length > 1 ? `${first.slice(0, -1).join(", ")} or ${first.at(-1)}` : first[0];
}

/** Put in what is known of the model, and where it came from. */
function describe(model, exported) {
  const { card, classNames, policy } = model;
  const title = titleOf(classNames.map(isolated));
  find("title").textContent = document.title = title;
  const how =
    policy.mode === "multilabel" ? "decides on every class that reaches its threshold" : "decides on the most probable class";
  const abstains = policy.abstain_below > 0 ? `; abstains where none reaches ${plain(policy.abstain_below)}` : "";
  find("about").textContent = `${classNames.length} ${classNames.length === 1 ? "class" : "classes"}; ${how}${abstains}`;
  const heads = Object.entries(exported.precision.num_heads).map(([name, count]) => `${count} in ${name}`);
  const facts = {
    "bundle (SHA-256)": element("code", {}, card.bundle_sha256),
    "model (SHA-256)": element("code", {}, exported.model.sha256),
    size: `${exported.model.size_bytes.toLocaleString("en")} bytes, ONNX opset ${exported.model.opset}`,
    precision: `backbone ${exported.precision.backbone}; heads: ${heads.join(", ")}`,
    runtime: `onnxruntime-web ${ort.env.versions.web}`,
  };
  for (const [name, value] of Object.entries(facts)) find("facts").append(element("dt", {}, name), element("dd", {}, value));
  const lines = classNames.slice(0, HEADS).map((name, column) => {
    const cells = [String(card.head_versions[column]), plain(model.thresholds[column])];
    return element("tr", {}, element("th", { scope: "row" }, name), ...cells.map((cell) => element("td", {}, cell)));
  });
  find("heads").append(...lines);
  if (classNames.length > HEADS) find("heads-title").textContent = `Heads (the first ${HEADS} of ${classNames.length})`;
}

/** Return what is said where the model refuses a row: of a form the fields, as each has its own message beside it. */
function refusal(problems, isForm) {
  if (!isForm) return `No answer: ${problems.map((each) => each.message).join("; ")}.`;
  const names = [...new Set(problems.map((each) => isolated(each.column)))];
  const more = names.length > FIELDS ? ` and ${names.length - FIELDS} more` : "";
  return `No answer: put right ${names.slice(0, FIELDS).join(", ")}${more}.`;
}

/** What was entered last and what the model says of it; rows that come while it is busy replace one another. */
class Live {
  constructor(model, results, cohort) {
    Object.assign(this, { model, results, cohort, waiting: false, busy: false });
    this.row = this.prediction = null;
    this.problems = [];
    this.column = new Map(model.classIds.map((id, k) => [id, k]));
  }

  /** Take a row, or null and why there is none. */
  async changed(row, reason = "Nothing is entered yet.") {
    Object.assign(this, { row, reason, waiting: true });
    if (this.busy) return;
    this.busy = true;
    try {
      while (this.waiting) {
        this.waiting = false;
        await this.predict();
      }
    } finally {
      this.busy = false;
    }
  }

  /** Keep what is wrong with the row, and show it beside the fields of an input that is built. */
  found(problems) {
    this.problems = problems;
    this.tell?.(problems);
  }

  async predict() {
    const { model, row } = this;
    this.prediction = null;
    if (row === null) {
      this.found([]);
      this.results.without(this.reason);
      return;
    }
    try {
      const cohort = this.cohort();
      const problems = model.check([row], { cohort });
      this.found(problems);
      if (problems.length) {
        this.results.without(refusal(problems, Boolean(model.encoder?.problems)));
        return;
      }
      const prediction = await model.predict([row], { cohort });
      this.prediction = prediction;
      this.results.show({
        probability: prediction.probabilities[0],
        decided: prediction.decisions[0].map((id) => this.column.get(id)),
        abstained: prediction.abstained[0],
        best: this.column.get(prediction.top[0][0].class),
      });
    } catch (error) {
      this.results.without(`No answer: ${error.message}.`);
      if (!(error instanceof InputError)) throw error;
    }
  }
}

/** Return how to read the cohort of what is entered, and add a field for it where the model has cohorts and no such column. */
function cohortInput(model, host, changed) {
  const { cohorts } = model.card;
  if (!cohorts) return () => null;
  const inTable =
    model.card.input.encoder?.kind === "table" && model.card.input.encoder.columns.some(({ name }) => name === cohorts.column);
  if (inTable) return () => null; // the row has it
  const select = element("select", { id: "cohort" }, element("option", { value: "" }, "not known"));
  select.append(...cohorts.names.map((name) => element("option", { value: name }, name)));
  select.addEventListener("change", changed);
  host.append(element("div", { className: "tools" }, element("label", { htmlFor: "cohort" }, cohorts.column), select));
  return () => select.value || null;
}

async function start() {
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmPaths = { wasm: new URL("./ort/ort-wasm-simd-threaded.wasm", import.meta.url).href };
  ort.env.logLevel = "error";
  const [settings, exported, card] = await Promise.all(["page.json", "card.json", "model_card.json"].map(jsonOf));
  const model = await load(ort, await bytesOf(exported.model.file), exported, card);
  describe(model, exported);
  const { classNames: names, classIds, thresholds, policy } = model;
  if (!Object.hasOwn(INPUTS, settings.input.kind)) {
    throw new Error(`page.json names the input ${settings.input.kind}; expected one of ${Object.keys(INPUTS).join(", ")}`);
  }
  const classes = classIds.map((id, k) => ({ id, name: names[k], threshold: thresholds[k] }));
  const results = new Results({ classes, mode: policy.mode, abstainBelow: policy.abstain_below });
  const live = new Live(model, results, () => null);
  const host = find("input");
  live.cohort = cohortInput(model, host, () => live.changed(live.row, live.reason));
  find("input-title").textContent = TITLES[settings.input.kind];
  document.querySelector("main").dataset.kind = settings.input.kind;
  const more = find("more");
  const given = { model, settings: settings.input, examples: settings.examples, more, changed: (...row) => live.changed(...row) };
  live.tell = INPUTS[settings.input.kind](host, given);
  live.tell?.(live.problems); // of the first row
  more.hidden = !more.childElementCount;
  window.ovr = { model, live, card: exported };
  for (const part of document.querySelectorAll("main, footer")) part.hidden = false;
  find("start").remove();
  find("failure").remove(); // last: an error before is shown there
}

start().catch((error) => {
  find("start").hidden = true;
  find("failure").hidden = false;
  find("failure").textContent = `This page cannot be used: ${error.message}`;
  throw error;
});
