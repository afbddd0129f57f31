// Rows of few values among many features, as lists of (feature, weight), as in `ovr.input.sparse`.

import { ArtifactError, InputError } from "./errors.js";
import { repr, shortRepr, typeName } from "./python_words.js";
import { InputSchema } from "./schema.js";

const MAX_FEATURES = 1 << 24;
const MOST = 3.4028234663852886e38; // of float32

/** Encodes objects feature number -> value as (max_tokens, 2): the number and the weight, by rising number, then zeros. */
export class SparseRows {
  constructor({ kind: _kind, ...settings }) {
    for (const [name, most] of [
      ["num_features", MAX_FEATURES],
      ["max_tokens", Infinity],
    ]) {
      const value = settings[name];
      if (!Number.isInteger(value) || value < 1 || value > most) {
        const bound = most === Infinity ? "at least 1" : `1 to ${most}`;
        throw new ArtifactError(`${name} of sparse rows must be a whole number, ${bound}; got ${repr(value)}`);
      }
    }
    if (typeof settings.log !== "boolean") {
      throw new ArtifactError(`log of sparse rows must be true or false, got ${repr(settings.log)}`);
    }
    if (!["none", "l2"].includes(settings.normalize)) {
      throw new ArtifactError(`normalize of sparse rows is ${repr(settings.normalize)}; expected 'none' or 'l2'`);
    }
    Object.assign(this, settings);
    this.tensor = new InputSchema([this.max_tokens, 2]);
  }

  /** Return the encoder of a model card. */
  static fromJson(value) {
    return new SparseRows(value);
  }

  /**
   * Return rows as one Float32Array of (B, max_tokens, 2).
   *
   * @param {Object<string, number>[]} rows
   * @throws {InputError} a row that is no object, a key that is no feature number or there twice, a value that is no finite number
   */
  encode(rows) {
    if (!Array.isArray(rows)) throw new InputError(`rows are ${typeName(rows)}; expected a sequence of mappings, one a row`);
    rows.forEach((row, number) => {
      if (row === null || typeof row !== "object" || Array.isArray(row) || ArrayBuffer.isView(row)) {
        throw new InputError(`row ${number} is ${typeName(row)}; expected an object with a value a column`);
      }
    });
    if (!rows.length) throw new InputError("got no rows; expected at least one");
    const x = new Float32Array(rows.length * this.tensor.size);
    rows.forEach((row, number) => {
      this._weights(this._pairs(row, number)).forEach(([feature, weight], place) => {
        x[number * this.tensor.size + 2 * place] = feature;
        x[number * this.tensor.size + 2 * place + 1] = weight;
      });
    });
    return x;
  }

  _pairs(row, number) {
    const pairs = Object.entries(row).map(([key, cell]) => [this._feature(key, number), valueOf(cell, number, key)]);
    pairs.sort((one, other) => one[0] - other[0]);
    pairs.forEach(([feature], at) => {
      if (at && pairs[at - 1][0] === feature)
        throw new InputError(`row ${number} has feature ${feature} twice; expected each once`);
    });
    return pairs;
  }

  _weights(pairs) {
    let kept = pairs.map(([feature, value]) => [feature, Math.fround(value)]).filter(([, value]) => value !== 0);
    if (kept.length > this.max_tokens) {
      kept = [...kept].sort((one, other) => Math.abs(other[1]) - Math.abs(one[1]) || one[0] - other[0]).slice(0, this.max_tokens);
      kept.sort((one, other) => one[0] - other[0]);
    }
    if (this.log) kept = kept.map(([feature, value]) => [feature, Math.sign(value) * Math.log1p(Math.abs(value))]);
    if (this.normalize !== "l2") return kept;
    const length = Math.sqrt(kept.reduce((sum, [, weight]) => sum + weight ** 2, 0));
    return kept.map(([feature, weight]) => [feature, weight / length]);
  }

  _feature(key, row) {
    if (!/^[0-9]{1,9}$/.test(key) || Number(key) >= this.num_features) {
      throw new InputError(
        `row ${row} has feature ${shortRepr(key)}; expected a whole number from 0 to ${this.num_features - 1}`,
        key,
      );
    }
    return Number(key);
  }
}

function valueOf(cell, row, key) {
  if (typeof cell === "number" && Math.abs(cell) <= MOST) return cell;
  throw new InputError(
    `row ${row}, feature ${key} holds ${shortRepr(Number.isNaN(cell) ? null : cell)}; expected a finite number`,
    key,
  );
}
