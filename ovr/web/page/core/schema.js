// What a model's input looks like, and the check of rows against it, as in `ovr.core.schema`. Knows nothing of models.
//
// B = batch

import { ArtifactError, InputError } from "./errors.js";
import { floatOf, floatRepr, repr, shortRepr, shownNames, tuple, typeName } from "./python_words.js";

/** The model's one input: rows of float32 in a shape. */
export class InputSchema {
  /**
   * @param {number[]} shape of one row, without the batch
   * @param {string[]} columns names of the entries of a flat row, or none
   * @param {string} name of the input of the graph
   */
  constructor(shape, columns = [], name = "x") {
    this.shape = shape;
    this.columns = columns;
    this.name = name;
    this.size = shape.reduce((product, size) => product * size, 1);
  }

  /** Return the schema of a model card. */
  static fromJson(value) {
    const { shape, columns, dtype, name } = value ?? {};
    if (
      !Array.isArray(shape) ||
      !shape.length ||
      !shape.every((size) => Number.isInteger(size) && size >= 1) ||
      !Array.isArray(columns)
    ) {
      throw new ArtifactError(`the model card cannot be read: its input has shape ${repr(shape)} and columns ${repr(columns)}`);
    }
    if (dtype !== "float32") throw new ArtifactError(`input dtype ${repr(dtype)} is not supported; expected 'float32'`);
    return new InputSchema(shape, columns, name);
  }

  /** Return how messages call the value at flat position `index` of a row. */
  columnName(index) {
    if (this.columns.length) return `column ${repr(this.columns[index])}`;
    if (this.shape.length === 1) return `column ${index}`;
    const position = [];
    let rest = index;
    for (let axis = this.shape.length - 1; axis >= 0; axis -= 1) {
      position.unshift(rest % this.shape[axis]);
      rest = Math.floor(rest / this.shape[axis]);
    }
    return `position ${tuple(position)}`;
  }

  /** Return the name of a column for programs: its name, or its number as a text. */
  columnKey(index) {
    return this.columns.length ? this.columns[index] : String(index);
  }
}

/**
 * Return rows as one Float32Array of B rows, or say what is wrong with them.
 *
 * @param {Array} rows each an array in the schema's shape, a flat array of as many values, or an object with a value a column.
 *   A text that is a number, as a cell of a CSV file or a form is, counts as that number.
 * @param {InputSchema} schema
 * @returns {Float32Array}
 * @throws {InputError} another shape, no rows, a value that is no number, NaN or infinity (naming row and column)
 */
export function checkRows(rows, schema) {
  if (!Array.isArray(rows)) throw new InputError(`rows are ${typeName(rows)}; expected an array with a row each`);
  const expected = `(${["rows", ...schema.shape].join(", ")})`;
  if (!rows.length) throw new InputError(`rows have shape (0,); expected ${expected}`);
  const flat = rows.map((row, number) => flattened(row, number, schema));
  const uneven = flat.findIndex((row) => !sameShape(row.shape, flat[0].shape));
  if (uneven > 0) {
    const [first, other] = [flat[0].shape, flat[uneven].shape].map((shape) => (shape ? tuple(shape) : "an uneven shape"));
    throw new InputError(`rows cannot be made into an array: row 0 has shape ${first}, row ${uneven} has ${other}`);
  }
  const { shape } = flat[0];
  if (shape === null) throw new InputError("rows cannot be made into an array: row 0 has an uneven shape");
  if (!sameShape(shape, schema.shape) && !sameShape(shape, [schema.size])) {
    throw new InputError(`rows have shape ${tuple([rows.length, ...shape])}; expected ${expected}`);
  }
  return numbersOf(flat, schema);
}

function numbersOf(flat, schema) {
  const x = new Float32Array(flat.length * schema.size);
  // numpy takes truth values for numbers where there are numbers beside them, and nothing else.
  const types = new Set(flat.flatMap(({ cells }) => (ArrayBuffer.isView(cells) ? ["number"] : cells.map((cell) => typeof cell))));
  types.delete("boolean");
  const takesTruth = types.size === 1 && types.has("number");
  let numBad = 0;
  let firstBad = -1;
  let firstValue = 0;
  flat.forEach(({ cells }, row) => {
    for (let column = 0; column < schema.size; column += 1) {
      const value = numberOf(cells[column], takesTruth);
      if (value === null) {
        const message = `row ${row}, ${schema.columnName(column)} holds ${shortRepr(cells[column])}; expected a number`;
        throw new InputError(message, schema.columnKey(column));
      }
      const at = row * schema.size + column;
      x[at] = value;
      if (!Number.isFinite(x[at])) {
        if (!numBad) [firstBad, firstValue] = [at, value];
        numBad += 1;
      }
    }
  });
  if (numBad) {
    const column = firstBad % schema.size;
    throw new InputError(
      `row ${Math.floor(firstBad / schema.size)}, ${schema.columnName(column)} holds ${floatRepr(firstValue)}; every value ` +
        `must be finite (${numBad} of ${x.length} are not)`,
      schema.columnKey(column),
    );
  }
  return x;
}

function numberOf(cell, takesTruth) {
  if (typeof cell === "number") return cell;
  if (typeof cell === "bigint") return Number(cell);
  if (typeof cell === "string") return floatOf(cell);
  return typeof cell === "boolean" && takesTruth ? Number(cell) : null;
}

/** Return the cells of a row in one array, and the shape that they had: null where that is uneven. */
function flattened(row, number, schema) {
  if (ArrayBuffer.isView(row)) return { cells: row, shape: [row.length] };
  if (row !== null && typeof row === "object" && !Array.isArray(row)) {
    if (!schema.columns.length) {
      throw new InputError(
        `row ${number} is an object, but the model's columns have no names; expected an array of shape ${tuple(schema.shape)}`,
      );
    }
    const missing = schema.columns.filter((name) => !Object.hasOwn(row, name));
    const known = new Set(schema.columns);
    const unknown = Object.keys(row).filter((name) => !known.has(name));
    if (missing.length || unknown.length) {
      throw new InputError(
        `row ${number} has other columns than the model: missing ${shownNames(missing)}; unknown ${shownNames(unknown)}`,
      );
    }
    return { cells: schema.columns.map((name) => row[name]), shape: schema.shape };
  }
  const cells = [];
  return { cells, shape: collect(row, cells) };
}

function collect(value, cells) {
  if (!Array.isArray(value) && !ArrayBuffer.isView(value)) {
    cells.push(value);
    return [];
  }
  let inner = [];
  for (let at = 0; at < value.length; at += 1) {
    const shape = collect(value[at], cells);
    if (at && !sameShape(shape, inner)) inner = null;
    else if (!at) inner = shape;
  }
  return inner && [value.length, ...inner];
}

function sameShape(one, other) {
  return one !== null && other !== null && one.length === other.length && one.every((size, axis) => size === other[axis]);
}
