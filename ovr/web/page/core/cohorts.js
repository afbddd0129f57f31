// The cohorts of rows, as in `ovr.runtime.cohort_rows`: which calibration of a model with cohorts is that of a row.
//
// B = batch

import { textOf } from "./cells.js";
import { InputError } from "./errors.js";
import { repr, strip } from "./python_words.js";

export const COHORT = "cohort"; // the second input of a graph with cohorts: int64 (B, 1)
export const POOLED = 0; // of rows without a cohort, or of one that the model does not know

/**
 * Return the cells of the cohort column, null where no row has it, and the rows as the encoder takes them.
 *
 * @param {Array} rows
 * @param {string} column
 * @param {boolean} keep whether the encoder knows the column too
 */
export function takeColumn(rows, column, keep) {
  const has = (row) => row !== null && typeof row === "object" && !Array.isArray(row) && Object.hasOwn(row, column);
  if (!rows.some(has)) return { cells: null, rows };
  const cells = rows.map((row) => (has(row) ? row[column] : null));
  if (keep) return { cells, rows };
  return {
    cells,
    rows: rows.map((row) => (has(row) ? Object.fromEntries(Object.entries(row).filter(([name]) => name !== column)) : row)),
  };
}

/**
 * Return one cohort a row as text, null where it is not known.
 *
 * @param {null|string|Array} cohort one for all rows, or a cell a row
 * @param {number} numRows
 * @throws {InputError} another number than rows, or a cell that is no text or number
 */
export function cohortNames(cohort, numRows) {
  if (cohort === null || cohort === undefined || typeof cohort === "string") {
    return new Array(numRows).fill(strip(cohort ?? "") || null);
  }
  if (!Array.isArray(cohort)) throw new InputError(`cohort is ${repr(cohort)}; expected one text a row, or one for all`);
  if (cohort.length !== numRows) {
    throw new InputError(`got ${cohort.length} cohorts for ${numRows} rows; expected one a row, or one text for all`);
  }
  return cohort.map((cell, row) => {
    if (cell !== null && typeof cell === "object") {
      throw new InputError(`the cohort of row ${row} is ${repr(cell)}; expected a text or a number, or None where it is not known`);
    }
    return strip(textOf(cell) ?? "") || null;
  });
}

/** Return the number of each row's cohort in the graph, (B, 1): its place among `names` from 1 on, or `POOLED`. */
export function cohortNumbers(names, cohorts) {
  const number = new Map(cohorts.names.map((name, c) => [name, c + 1]));
  return BigInt64Array.from(names, (name) => BigInt(number.get(name) ?? POOLED));
}
