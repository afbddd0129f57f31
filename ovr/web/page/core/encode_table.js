// Rows of cells - numbers, categories, dates, some of them missing - as the network takes them, as in `ovr.input.table`.
//
// D = numbers of a row

import { CategoryColumn, DateColumn, NumericColumn, REASONS } from "./columns.js";
import { ArtifactError, InputError } from "./errors.js";
import { repr, shownNames, typeName } from "./python_words.js";
import { InputSchema } from "./schema.js";

const COLUMNS = { numeric: NumericColumn, category: CategoryColumn, date: DateColumn };
const DECIMALS = [".", ","];

/** Columns by name, in any order; those in `ignored` may be there or not, any other is refused. */
export class TableEncoder {
  constructor(columns, marks, ignored) {
    this.names = columns.map(({ name }) => name);
    if (!columns.length || new Set(this.names).size < columns.length) {
      throw new ArtifactError(`a table needs columns of distinct names, got ${repr(this.names.slice(0, 5))}`);
    }
    this._ordered = [...columns.filter((column) => !column.isIndex), ...columns.filter((column) => column.isIndex)];
    this._marks = new Set(marks);
    this._known = new Set([...ignored, ...this.names]);
    this.tensor = new InputSchema([columns.reduce((sum, { size }) => sum + size, 0)]);
  }

  /** Return the encoder of a model card. */
  static fromJson({ columns, marks, ignored, decimal = "." }) {
    if (!Array.isArray(columns) || !Array.isArray(marks) || !Array.isArray(ignored)) {
      throw new ArtifactError("the table encoder cannot be read: expected lists of columns, marks and ignored");
    }
    if (!DECIMALS.includes(decimal)) throw new ArtifactError(`the decimal of a table is ${repr(decimal)}; expected '.' or ','`);
    const made = columns.map((settings) => {
      if (!Object.hasOwn(COLUMNS, settings.kind)) {
        throw new ArtifactError(
          `column ${repr(settings.name)} of the encoder is of kind ${repr(settings.kind)}, which is not known`,
        );
      }
      return new COLUMNS[settings.kind](settings, decimal);
    });
    return new TableEncoder(made, marks, ignored);
  }

  /** Return whether rows may have this column. */
  knows(column) {
    return this._known.has(column);
  }

  /** Return rows as objects: an array of cells is taken in the order of the columns. */
  objects(rows) {
    return rows.map((row, number) => {
      if (!Array.isArray(row)) return row;
      if (row.length !== this.names.length) {
        throw new InputError(`row ${number} has ${row.length} cells; expected ${this.names.length}: ${shownNames(this.names)}`);
      }
      return Object.fromEntries(row.map((cell, at) => [this.names[at], cell]));
    });
  }

  /**
   * Return the rows as one Float32Array of (B, D).
   *
   * @param {Object<string, *>[]} rows
   * @throws {InputError} no rows, a column missing or unknown, or cells that cannot be read or that a policy refuses
   */
  encode(rows) {
    const { x, findings } = this._encodeAll(rows);
    const refused = findings.filter((found) => found.refused).sort((one, other) => one.rows[0] - other.rows[0]);
    if (refused.length) {
      const more = refused.length > 3 ? `; and ${refused.length - 3} more` : "";
      throw new InputError(refused.slice(0, 3).map(shownFinding).join("; ") + more, refused[0].column);
    }
    return x;
  }

  /**
   * Return what is wrong with each cell that `encode` refuses, by row.
   *
   * @returns {{row: number, column: string, message: string}[]}
   * @throws {InputError} rows that are no objects, or have other columns
   */
  problems(rows) {
    const problems = [];
    for (const { column, refused, rows: bad, expected } of this._encodeAll(rows).findings) {
      if (!refused) continue;
      for (const row of bad) {
        problems.push({ row, column, message: `column ${repr(column)} holds ${repr(rows[row][column])}; expected ${expected}` });
      }
    }
    return problems.sort((one, other) => one.row - other.row);
  }

  _encodeAll(rows) {
    this._check(rows);
    const { size } = this.tensor;
    const x = new Float32Array(rows.length * size);
    const [ofNumbers, ofOthers] = [[], []];
    let start = 0;
    for (const column of this._ordered) {
      const first = start;
      const cells = rows.map((row) => row[column.name]);
      const found = column.encode(cells, this._marks, (row, place, value) => {
        x[row * size + first + place] = value;
      });
      (column instanceof NumericColumn ? ofNumbers : ofOthers).push(...found);
      start += column.size;
    }
    // Those of numbers come first, by reason: the order in which messages name them.
    ofNumbers.sort((one, other) => REASONS.indexOf(one.reason) - REASONS.indexOf(other.reason));
    return { x, findings: [...ofNumbers, ...ofOthers] };
  }

  _check(rows) {
    rows.forEach((row, number) => {
      if (row === null || typeof row !== "object" || ArrayBuffer.isView(row)) {
        throw new InputError(`row ${number} is ${typeName(row)}; expected an object with a value a column`);
      }
      const missing = this.names.filter((name) => !Object.hasOwn(row, name));
      const unknown = Object.keys(row).filter((name) => !this._known.has(name));
      if (!missing.length && !unknown.length) return;
      const absent = missing.length ? " (null stands for a value that is not known)" : "";
      const hint = unknown.length ? " (drop= leaves columns out)" : "";
      throw new InputError(
        `row ${number} has other columns than the model: missing ${shownNames(missing)}${absent}; ` +
          `unknown ${shownNames(unknown)}${hint}`,
      );
    });
    if (!rows.length) throw new InputError("got no rows; expected at least one");
  }
}

function shownFinding({ column, rows, value, expected }) {
  const more = rows.length > 1 ? ` (${rows.length - 1} more such rows)` : "";
  return `row ${rows[0]}, column ${repr(column)} holds ${repr(value)}; expected ${expected}${more}`;
}
