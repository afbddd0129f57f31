// Rows that are texts, or objects of whose columns a text is made, as `ovr.input.records` and `ovr.runtime.record_files` take them.

import { ArtifactError, InputError } from "./errors.js";
import { repr, typeName } from "./python_words.js";

const TEXT_COLUMN = "text";

/** The columns of an object that make a text, and what stands between them; none: the only column, or the one named `text`. */
export class TextColumns {
  constructor(names = null, joiner = null) {
    const given = names !== null || joiner !== null;
    const isKnown = Array.isArray(names) && names.length > 0 && names.every((name) => typeof name === "string");
    if (given && (!isKnown || new Set(names).size < names.length || typeof joiner !== "string")) {
      throw new ArtifactError(
        `the encoder of texts has columns ${repr(names)} and joiner ${repr(joiner)}; expected a list of distinct names, and a text`,
      );
    }
    this.names = names ?? [];
    this.joiner = joiner ?? "\n";
  }

  /** Return the text of an object. */
  textOf(row, number) {
    const columns = Object.keys(row);
    let names = this.names.length ? this.names : [TEXT_COLUMN];
    if (columns.length === 1 && names.length === 1) names = columns;
    const absent = names.filter((name) => !Object.hasOwn(row, name));
    const has = columns.slice(0, 5).map(repr).join(", ");
    if (absent.length && this.names.length) {
      throw new InputError(
        `row ${number} has no column ${absent.map(repr).join(", ")}; the model's text is made of ${names.map(repr).join(", ")}, ` +
          `and the columns are ${has || "none"}`,
      );
    }
    if (absent.length) {
      throw new InputError(`row ${number} has columns ${has}; expected one with the text, or ${repr(TEXT_COLUMN)} among them`);
    }
    for (const name of names) {
      if (typeof row[name] !== "string") {
        throw new InputError(`row ${number}, column ${repr(name)} holds ${repr(row[name])}; expected a text`, name);
      }
    }
    return names.map((name) => row[name]).join(this.joiner);
  }
}

/**
 * Return each row as a text.
 *
 * @param {(string|object)[]} rows
 * @param {TextColumns} columns
 * @returns {string[]}
 * @throws {InputError} a row that is neither a text nor an object of texts, or no rows
 */
export function textsOf(rows, columns) {
  if (!Array.isArray(rows)) throw new InputError(`rows must be a sequence of texts, got ${typeName(rows)}`);
  const texts = rows.map((row, number) => {
    if (row !== null && typeof row === "object" && !Array.isArray(row) && !ArrayBuffer.isView(row))
      return columns.textOf(row, number);
    if (typeof row !== "string") throw new InputError(`row ${number} is ${typeName(row)} ${repr(row)}; expected a text`);
    return row;
  });
  if (!texts.length) throw new InputError("got no rows; expected at least one");
  return texts;
}
