// Which of some rows a model cannot take, and why, as in `ovr.input.row_problems`. Knows a function that refuses rows, no rows.

import { InputError } from "./errors.js";

const FIRST = /\brow 0\b( \([^()]*\))?(, |: | )/g; // how messages call the only row

/**
 * Return what is wrong with each row that `encode` refuses, in order.
 *
 * Rows are taken in halves until those that are refused stand alone.
 *
 * @param {Array} rows
 * @param {function(Array)} encode throws InputError where one of the given rows, which it counts from 0, is refused
 * @returns {{row: number, column: string|null, message: string}[]}
 */
export function rowProblems(rows, encode) {
  const problems = [];
  const parts = rows.length ? [[0, rows.length]] : [];
  while (parts.length) {
    const [start, stop] = parts.pop();
    try {
      encode(rows.slice(start, stop));
    } catch (error) {
      if (!(error instanceof InputError)) throw error;
      const middle = Math.floor((start + stop) / 2);
      if (stop - start > 1) parts.push([middle, stop], [start, middle]);
      else problems.push({ row: start, column: error.column, message: error.message.replace(FIRST, "") });
    }
  }
  return problems;
}
