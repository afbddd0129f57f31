// Cells of a table as numbers, times and texts, whatever they came as, as in `ovr.input.cells`. Knows no column's settings.
//
// A cell is a text, a number, a truth value, or null (undefined) where there is none.

import { asciiDigits, floatOf, floatRepr, strip } from "./python_words.js";
import { isoSeconds } from "./iso.js";

/** What a cell is that can not be read. */
export const BAD = Symbol("bad");

/** Return the text that stands for a cell, null for a missing one; 3.0 is "3". */
export function textOf(cell) {
  if (cell === null || cell === undefined) return null;
  if (typeof cell === "string") return cell;
  if (typeof cell === "number") {
    if (Number.isNaN(cell)) return null;
    return Number.isInteger(cell) ? BigInt(cell).toString() : floatRepr(cell);
  }
  if (typeof cell === "boolean") return cell ? "True" : "False";
  return String(cell);
}

/**
 * Return the number of a cell, NaN where it is missing, `BAD` where it is no finite number.
 *
 * @param {*} cell
 * @param {Set<string>} marks texts that stand for a missing cell
 * @param {"."|","} decimal what stands before the fraction of a number in a text
 */
export function readNumber(cell, marks, decimal) {
  if (cell === null || cell === undefined) return NaN;
  if (typeof cell === "number") return Math.abs(cell) === Infinity ? BAD : cell;
  if (typeof cell === "bigint") return Number.isFinite(Number(cell)) ? Number(cell) : BAD;
  if (typeof cell !== "string") return BAD;
  const text = decimal === "," ? withPoint(cell) : cell;
  if (marks.has(strip(text))) return NaN;
  const value = text.includes("_") ? null : floatOf(text);
  return value === null || !Number.isFinite(value) ? BAD : value;
}

/** Return a text with a decimal comma as one with a point; one with another point as what is no number. */
function withPoint(text) {
  let bare = strip(text);
  if (!/^[-+0-9.,eE]+$/.test(asciiDigits(bare))) return text;
  const inThousands = /^[-+]?\d{1,3}(\.\d{3})+(,\d*)?$/.test(asciiDigits(bare));
  bare = bare.replaceAll(".", inThousands ? "" : "_");
  return bare.split(",").length <= 2 ? bare.replace(",", ".") : text;
}

/**
 * Return the seconds since 1970 of a cell, NaN where it is missing, `BAD` where it holds no time.
 *
 * @param {*} cell
 * @param {Set<string>} marks
 * @param {{seconds: function(string): number|null}[]} formats none for ISO 8601
 */
export function readTime(cell, marks, formats) {
  if (cell === null || cell === undefined || Number.isNaN(cell)) return NaN;
  if (typeof cell !== "string") return BAD;
  const text = strip(cell);
  if (marks.has(text)) return NaN;
  if (!formats.length) return (/^[0-9]+$/.test(text) ? null : isoSeconds(text)) ?? BAD; // 20240131 is a number to everybody
  for (const format of formats) {
    const found = format.seconds(text);
    if (found !== null) return found;
  }
  return BAD;
}

/** Return the text of a cell without white space at its ends, null where it is missing, `BAD` where it is a list or an object. */
export function readText(cell, marks) {
  if (cell !== null && typeof cell === "object") return BAD;
  const text = textOf(cell);
  if (text === null) return null;
  const bare = strip(text);
  return marks.has(bare) ? null : bare;
}
