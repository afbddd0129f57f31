// Probabilities as bars, thresholds as marks, the decision in words. Knows no model and no input.

const MOST = 50; // bars at a time
const IN_ORDER = 20; // up to so many classes the bars stand in the model's order, and never move
const SAID_AFTER_MS = 600; // of the last change: screen readers are not told each step of a drawing

/** Return an element with properties and children. */
export function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key.includes("-") || key === "role") made.setAttribute(key, value);
    else made[key] = value;
  }
  made.append(...children);
  return made;
}

/** Return a probability as people read it: never 0.000 or 1.000 for what is not. */
export function shown(probability) {
  if (probability > 0 && probability < 0.0005) return "<0.001";
  if (probability < 1 && probability >= 0.9995) return ">0.999";
  return probability.toFixed(3);
}

/** Return what the model decided on for a row, in words.
 *
 * `outcome` has `probability` (Float32Array, K), `decided` (columns), `abstained`, and `best`, the column of the highest.
 */
export function decisionOf(card, outcome) {
  const name = (column) => isolated(card.classes[column].name);
  if (outcome.abstained) {
    const highest = `the highest probability, ${shown(outcome.probability[outcome.best])} of ${name(outcome.best)}`;
    return `No class: ${highest}, is below ${plain(card.abstainBelow)}, so the model abstains.`;
  }
  if (outcome.decided.length === 0) return "No class: none reaches its threshold.";
  const falling = [...outcome.decided].sort((a, b) => outcome.probability[b] - outcome.probability[a]);
  const named = falling.slice(0, 10).map((column) => `${name(column)} (${shown(outcome.probability[column])})`);
  const more = outcome.decided.length - named.length;
  return `Decided: ${named.join(", ")}${more > 0 ? ` and ${more} more` : ""}.`;
}

const CONTROLS = /[\u200e\u200f\u061c\u202a-\u202e\u2066-\u2069]/g; // of the direction of writing
const FROM_THE_RIGHT = /[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\u{10800}-\u{10fff}\u{1e800}-\u{1efff}]/u;

/** Return a name that cannot turn the direction of other words: without controls, isolated where it is written from the right. */
export function isolated(name) {
  const plain = name.replace(CONTROLS, "");
  return FROM_THE_RIGHT.test(plain) ? `\u2068${plain}\u2069` : plain;
}

/** Return a number with no more digits than it needs. */
export const plain = (number) => String(Number(number.toPrecision(6)));

/** The drawn outcomes of a model, whose `card` has `classes` ({id, name, threshold}), `mode` and `abstainBelow`. */
export class Results {
  constructor(card) {
    this.card = card;
    this.rows = [];
    this.outcome = null;
    const find = (id) => document.getElementById(id);
    [this.host, this.list, this.decision, this.live, this.filter, this.count] = [
      "results",
      "bars",
      "decision",
      "live",
      "filter",
      "shown",
    ].map(find);
    if (card.classes.length > MOST) {
      find("find").hidden = false;
      this.filter.addEventListener("input", () => this.#draw());
    }
    const longest = Math.max(...card.classes.slice(0, 1000).map((each) => each.name.length));
    this.list.style.setProperty("--names", longest <= 4 ? "2.25rem" : longest <= 12 ? "24%" : "36%");
    find("legend").append(...this.#legend());
  }

  #legend() {
    const key = (kind) => element("span", { className: "key", "aria-hidden": "true" }, element("span", { className: kind }));
    const multilabel = this.card.mode === "multilabel";
    const parts = [
      "Each bar is a calibrated probability of its own: they need not sum to 1. ",
      key("mark"),
      " the class's threshold",
    ];
    parts.push(
      multilabel
        ? ": the model decides on every class that reaches it."
        : ", which this model leaves aside: it decides on the most probable class.",
    );
    if (this.card.abstainBelow > 0) {
      parts.push(" ", key("limit"), ` if no bar reaches ${plain(this.card.abstainBelow)}, the model abstains.`);
    }
    return parts;
  }

  /** Show the outcome of a row. */
  show(outcome) {
    this.outcome = outcome;
    this.host.classList.remove("stale");
    this.#draw();
    this.#say(decisionOf(this.card, outcome), !outcome.abstained && outcome.decided.length > 0);
  }

  /** Show that there is no outcome, and why. */
  without(reason) {
    this.outcome = null;
    this.host.classList.add("stale");
    this.#say(reason, false);
    this.#draw();
  }

  #say(text, decided) {
    this.decision.textContent = text;
    this.decision.classList.toggle("none", !decided);
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      this.live.textContent = text;
    }, SAID_AFTER_MS);
  }

  /** Return the columns to show: those whose name or id holds the filter's text, the most probable first. */
  #columns() {
    const { classes } = this.card;
    const wanted = this.filter.value.trim().toLowerCase();
    let columns = classes.map((_, column) => column);
    if (wanted)
      columns = columns.filter((column) => `${classes[column].name}\n${classes[column].id}`.toLowerCase().includes(wanted));
    if (classes.length > IN_ORDER && this.outcome) {
      const { probability } = this.outcome;
      columns.sort((a, b) => probability[b] - probability[a] || a - b);
    }
    const shownOnes = columns.slice(0, MOST);
    const matching = wanted ? ` (${columns.length} match)` : "";
    this.count.textContent = `${shownOnes.length} of ${classes.length} classes${matching}, the most probable first`;
    return shownOnes;
  }

  #draw() {
    const columns = this.#columns();
    while (this.rows.length < columns.length) this.rows.push(this.#row());
    while (this.rows.length > columns.length) this.rows.pop().item.remove();
    const decided = new Set(this.outcome ? this.outcome.decided : []);
    columns.forEach((column, place) => this.#fill(this.rows[place], column, decided.has(column)));
  }

  #row() {
    const parts = {
      name: element("bdi", { className: "name" }),
      length: element("i"),
      mark: element("span", { className: "mark" }),
      value: element("span", { className: "value" }),
      rest: element("span", { className: "unseen" }),
    };
    const bar = element("div", { className: "bar", "aria-hidden": "true" }, parts.length, parts.mark);
    if (this.card.abstainBelow > 0) {
      const limit = element("span", { className: "limit" });
      limit.style.left = `${100 * this.card.abstainBelow}%`;
      bar.append(limit);
    }
    parts.item = element("li", {}, parts.name, bar, parts.value, parts.rest);
    this.list.append(parts.item);
    return parts;
  }

  #fill(parts, column, decided) {
    const { name, id, threshold } = this.card.classes[column];
    const probability = this.outcome ? this.outcome.probability[column] : 0;
    parts.item.dataset.id = id;
    parts.item.classList.toggle("decided", decided);
    parts.name.textContent = name;
    parts.name.title = name === id ? "" : id;
    parts.length.style.width = `${100 * probability}%`;
    parts.mark.hidden = threshold > 1;
    parts.mark.style.left = `${100 * threshold}%`;
    parts.mark.parentElement.title = `threshold ${plain(threshold)}`;
    parts.value.textContent = this.outcome ? shown(probability) : "–";
    parts.rest.textContent = `, threshold ${plain(threshold)}${decided ? ", decided" : ""}`;
  }
}
