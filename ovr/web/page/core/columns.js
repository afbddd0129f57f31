// The columns of a table: what each may hold, and which numbers stand for a cell, as in `ovr.input.columns`.
//
// A column's `encode(cells, marks, write)` calls write(row, place, value) for the numbers that are not 0, and returns findings. A
// finding is `{column, reason, refused, rows, value, expected}`: the rows with the problem, ascending, and what the first holds.

import { splitDay, civil, daysOf, shownTime } from "./calendar.js";
import { BAD, readNumber, readText, readTime } from "./cells.js";
import { ArtifactError } from "./errors.js";
import { textHash } from "./hash.js";
import { general, repr } from "./python_words.js";
import { TimeFormat } from "./strptime.js";

const [ALLOW, ERROR, CLIP] = ["allow", "error", "clip"];
export const REASONS = ["unreadable", "missing", "unknown", "out of range"];
const [UNREADABLE, IS_MISSING, UNKNOWN, OUT_OF_RANGE] = REASONS;
const MOST = 3.4028234663852886e38; // of float32

/** Return the finding of these rows as a list, empty where there are none. */
function finding(column, reason, policy, rows, cells, expected) {
  return rows.length ? [{ column, reason, refused: policy === ERROR, rows, value: cells[rows[0]], expected }] : [];
}

function unreadable(column, read, cells, expected) {
  return finding(column, UNREADABLE, ERROR, rowsWhere(read, (value) => value === BAD), cells, expected);
}

function checkPolicies(column, policies) {
  for (const [name, policy] of Object.entries(policies)) {
    const known = name === "out_of_range" ? [ALLOW, ERROR, CLIP] : [ALLOW, ERROR];
    if (!known.includes(policy)) {
      throw new ArtifactError(`column ${repr(column)} has ${name}=${repr(policy)}; expected one of ${known.join(", ")}`);
    }
  }
}

function clip(value, low, high) {
  return Math.min(Math.max(value, low), high);
}

/** Return the rows that a test holds for. */
function rowsWhere(values, holds) {
  const rows = [];
  values.forEach((value, row) => {
    if (holds(value, row)) rows.push(row);
  });
  return rows;
}

/** A number: (curve(value) - shift) * scale, of `fill` where it is missing; then 1 or 0 for missing where `flag`. */
export class NumericColumn {
  constructor(settings, decimal) {
    Object.assign(this, { curve: null, missing: ALLOW, out_of_range: ALLOW }, settings, { decimal });
    checkPolicies(this.name, { missing: this.missing, out_of_range: this.out_of_range });
    this.size = this.flag ? 2 : 1;
  }

  encode(cells, marks, write) {
    const read = cells.map((cell) => readNumber(cell, marks, this.decimal));
    let found = unreadable(this.name, read, cells, "a finite number");
    if (!this.flag || this.missing === ERROR) {
      const expected = this.flag ? "a number" : "a number, as in every training row";
      found = [...found, ...finding(this.name, IS_MISSING, this.missing, rowsWhere(read, Number.isNaN), cells, expected)];
    }
    const outside = rowsWhere(read, (value) => value !== BAD && (value < this.low || value > this.high));
    const span = `${general(this.low)} to ${general(this.high)}, as in the training rows`;
    found = [...found, ...finding(this.name, OUT_OF_RANGE, this.out_of_range, outside, cells, span)];
    read.forEach((given, row) => {
      const isMissing = given === BAD || Number.isNaN(given);
      let value = isMissing ? this.fill : this.out_of_range === CLIP ? clip(given, this.low, this.high) : given;
      if (this.curve !== null) value = interpolated(value, this.curve[0], this.curve[1]);
      write(row, 0, clip((value - this.shift) * this.scale, -MOST, MOST));
      if (this.flag && isMissing) write(row, 1, 1);
    });
    return found;
  }
}

/** Return what `numpy.interp` does: straight between the points (x, y), level beyond them. */
function interpolated(value, x, y) {
  if (value > x[x.length - 1]) return y[y.length - 1];
  if (value < x[0]) return y[0];
  let [low, high] = [0, x.length];
  while (low < high) {
    const middle = low + ((high - low) >> 1);
    if (value >= x[middle]) low = middle + 1;
    else high = middle;
  }
  const at = low - 1;
  if (at === x.length - 1 || x[at] === value) return y[at];
  return ((y[at + 1] - y[at]) / (x[at + 1] - x[at])) * (value - x[at]) + y[at];
}

/** A text: one place for each category or bucket, then one for those not known and one for missing, where training had such. */
export class CategoryColumn {
  constructor(settings) {
    Object.assign(this, { layout: "onehot", num_buckets: 0, missing: ALLOW, unknown: ALLOW }, settings);
    checkPolicies(this.name, { missing: this.missing, unknown: this.unknown });
    if (!["onehot", "hashed", "index"].includes(this.layout)) {
      throw new ArtifactError(`column ${repr(this.name)} has layout ${repr(this.layout)}; expected onehot, hashed or index`);
    }
    this.isIndex = this.layout === "index";
    this.numOwn = this.categories.length + this.num_buckets;
    this.size = this.isIndex ? 1 : this.numOwn + (this.unknown_place ? 1 : 0) + (this.missing_place ? 1 : 0);
    this._placeOf = new Map(this.categories.map((category, place) => [category, place]));
    this._rare = new Set(this.rare);
  }

  encode(cells, marks, write) {
    const texts = cells.map((cell) => readText(cell, marks));
    const places = texts.map((text) => (typeof text === "string" ? this._place(text) : null));
    const isUnknown = (place, row) => place === -1 && !this._rare.has(texts[row]);
    const seen = [...this.categories, ...this.rare];
    const shown = seen.slice(0, 5).map(repr).join(", ") + (seen.length > 5 ? `, ... (${seen.length})` : "");
    let found = unreadable(this.name, texts, cells, "a text");
    if (!this.missing_place || this.missing === ERROR) {
      const rows = rowsWhere(texts, (text) => text === null);
      found = [...found, ...finding(this.name, IS_MISSING, this.missing, rows, cells, "a text, as in every training row")];
    }
    found = [...found, ...finding(this.name, UNKNOWN, this.unknown, rowsWhere(places, isUnknown), cells, `one of ${shown}`)];
    places.forEach((place, row) => {
      if (this.isIndex)
        write(row, 0, place === null ? 0 : place + 2); // -1, not known, becomes 1
      else if (place === null) {
        if (this.missing_place) write(row, this.numOwn + (this.unknown_place ? 1 : 0), 1);
      } else if (place >= 0) write(row, place, 1);
      else if (this.unknown_place) write(row, this.numOwn, 1);
    });
    return found;
  }

  _place(text) {
    if (this.categories.length) return this._placeOf.get(text) ?? -1;
    return textHash(text) % (this.isIndex ? this.num_buckets - 2 : this.num_buckets);
  }
}

/** A time, as its parts that vary: the year with its fraction, standardised, and points on circles; then missing. */
export class DateColumn {
  constructor(settings) {
    Object.assign(this, { formats: [], missing: ALLOW, out_of_range: ALLOW }, settings);
    checkPolicies(this.name, { missing: this.missing, out_of_range: this.out_of_range });
    this._formats = this.formats.map((format) => new TimeFormat(format));
    this.size = this.parts.length + (this.flag ? 1 : 0);
  }

  encode(cells, marks, write) {
    const read = cells.map((cell) => readTime(cell, marks, this._formats));
    const expected = this.formats.length
      ? `a time of the form ${this.formats.join(" or ")}`
      : "a time of ISO 8601, such as 2024-01-31";
    let found = unreadable(this.name, read, cells, expected);
    if (!this.flag || this.missing === ERROR) {
      const rows = rowsWhere(read, Number.isNaN);
      found = [...found, ...finding(this.name, IS_MISSING, this.missing, rows, cells, "a time, as in every training row")];
    }
    const outside = rowsWhere(read, (value) => value !== BAD && (value < this.low || value > this.high));
    if (outside.length) {
      const span = `${shownTime(this.low)} to ${shownTime(this.high)}, as in the training rows`;
      found = [...found, ...finding(this.name, OUT_OF_RANGE, this.out_of_range, outside, cells, span)];
    }
    read.forEach((given, row) => {
      const isMissing = given === BAD || Number.isNaN(given);
      const filled = isMissing ? this.fill : given;
      const parts = timeParts(this.out_of_range === CLIP ? clip(filled, this.low, this.high) : filled);
      this.parts.forEach((part, place) => {
        write(row, place, part === "year" ? (parts.year - this.shift) * this.scale : parts[part]);
      });
      if (this.flag && isMissing) write(row, this.parts.length, 1);
    });
    return found;
  }
}

/** Return the parts of a time: seconds since 1970. Sines and cosines may differ from numpy's in their last bit. */
export function timeParts(seconds) {
  const [days, within] = splitDay(Math.trunc(seconds * 1e6));
  const [year, month] = civil(days);
  const start = daysOf(year, 1, 1);
  const part = ((days - start) * 86_400e6 + within) / ((daysOf(year + 1, 1, 1) - start) * 86_400e6);
  const parts = { year: year + part };
  const turns = { month: (month - 1) / 12, weekday: ((((days + 3) % 7) + 7) % 7) / 7, hour: within / 86_400e6 };
  for (const [name, turn] of Object.entries(turns)) {
    parts[`${name} sin`] = Math.sin(2 * Math.PI * turn);
    parts[`${name} cos`] = Math.cos(2 * Math.PI * turn);
  }
  return parts;
}
