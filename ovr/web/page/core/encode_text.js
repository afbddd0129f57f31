// Texts as hashed word and character n-grams, as in `ovr.input.text`.
//
// Two things are as the Unicode tables of Python and of the browser say: characters that either does not know yet may differ.

import { ArtifactError } from "./errors.js";
import { crc32, mixed, PAIR, utf8, wrapped } from "./hash.js";
import { repr, WHITE } from "./python_words.js";
import { InputSchema } from "./schema.js";
import { textsOf, TextColumns } from "./texts.js";

const MAX_TOKENS = 1 << 24;
const MAX_NGRAM = 10;
const NORMAL_FORMS = ["none", "NFC", "NFKC"];
const MARKS =
  "\\u0300-\\u036f\\u0483-\\u0489\\u0591-\\u05bd\\u0610-\\u061a\\u064b-\\u065f" +
  "\\u0900-\\u0963\\u0971-\\u0df3\\u0e31-\\u0e4e\\u0eb1-\\u0ecd\\u1ab0-\\u1aff";
const LETTER = "\\p{L}\\p{N}_"; // \w of Python
const WORD = new RegExp(`[${LETTER}][${LETTER}${MARKS}]*(?:['\\u2019][${LETTER}][${LETTER}${MARKS}]*)*|[^${LETTER}${WHITE}]`, "gu");
const CHARS_SALT = 0x63686172;

/** Encodes texts as (max_tokens, 2): the number of a token and its weight, then zeros. */
export class HashedText {
  constructor({ kind: _kind, columns, joiner, ...settings }) {
    for (const name of ["num_tokens", "max_tokens"]) {
      const value = settings[name];
      if (!Number.isInteger(value) || value < 1 || value > MAX_TOKENS) {
        throw new ArtifactError(`${name} of hashed text must be a whole number from 1 to ${MAX_TOKENS}, got ${repr(value)}`);
      }
    }
    for (const name of ["words", "chars"]) checkLengths(name, settings[name]);
    if (settings.words === null && settings.chars === null) {
      throw new ArtifactError("hashed text needs words, chars or both: lengths of n-grams, such as [1, 2]");
    }
    if (typeof settings.lowercase !== "boolean") {
      throw new ArtifactError(`lowercase of hashed text must be true or false, got ${repr(settings.lowercase)}`);
    }
    if (!NORMAL_FORMS.includes(settings.normal_form)) {
      throw new ArtifactError(
        `normal_form of hashed text is ${repr(settings.normal_form)}; expected one of ${NORMAL_FORMS.join(", ")}`,
      );
    }
    Object.assign(this, settings);
    this.columns = new TextColumns(columns, joiner);
    this.tensor = new InputSchema([this.max_tokens, 2]);
  }

  /** Return the encoder of a model card. */
  static fromJson(value) {
    return new HashedText(value);
  }

  /**
   * Return texts as one Float32Array of (B, max_tokens, 2).
   *
   * @param {(string|object)[]} rows
   * @throws {InputError} a row that is no text, or no rows
   */
  encode(rows) {
    const texts = textsOf(rows, this.columns);
    const x = new Float32Array(texts.length * this.tensor.size);
    texts.forEach((text, row) => {
      this._tokens(text).forEach(([number, count], place) => {
        x[row * this.tensor.size + 2 * place] = number;
        x[row * this.tensor.size + 2 * place + 1] = 1 + Math.log(count);
      });
    });
    return x;
  }

  /** Return the words of a text. */
  wordsOf(text) {
    const normal = this.normal_form === "none" ? text : text.normalize(this.normal_form);
    return (this.lowercase ? normal.toLowerCase() : normal).match(WORD) ?? [];
  }

  /** Return [number, count] of the tokens that are kept, in their order. */
  _tokens(text) {
    const counts = new Map(); // in the order of their first n-gram
    for (const number of this._numbers(this.wordsOf(text))) counts.set(number, (counts.get(number) ?? 0) + 1);
    return [...counts].sort((one, other) => other[1] - one[1]).slice(0, this.max_tokens); // a stable sort
  }

  /** Yield the number of each n-gram; each of those that are different is hashed once. */
  *_numbers(words) {
    const numTokens = BigInt(this.num_tokens);
    const numberOf = (hash) => Number(((hash >> 32n) * numTokens) >> 32n);
    if (this.words !== null) {
      const [single, hashes] = numbered(words, (word) => mixed(BigInt(crc32(utf8(word)))));
      let [runs, hashesOfRuns] = [single, hashes]; // which of the different runs begins at each word
      for (let length = 1; length <= this.words[1]; length += 1) {
        if (length > 1) {
          const pairs = runs.slice(0, -1).map((run, at) => run * hashes.length + single[at + length - 1]);
          const before = hashesOfRuns;
          const hashOf = (pair) =>
            mixed(wrapped(before[Math.floor(pair / hashes.length)] * PAIR + hashes[pair % hashes.length]));
          [runs, hashesOfRuns] = numbered(pairs, hashOf);
        }
        if (length < this.words[0]) continue;
        const numbers = hashesOfRuns.map(numberOf);
        for (const run of runs) yield numbers[run];
      }
    }
    if (this.chars === null) return;
    const known = new Map();
    for (const word of words) {
      if (!known.has(word)) known.set(word, runsOf(word, this.chars).map(numberOf));
      yield* known.get(word);
    }
  }
}

/** Return for each value which of the different ones it is, and what `make` makes of each of these. */
function numbered(values, make) {
  const known = new Map();
  const made = [];
  const numbers = values.map((value) => {
    if (!known.has(value)) {
      known.set(value, made.length);
      made.push(make(value));
    }
    return known.get(value);
  });
  return [numbers, made];
}

function runsOf(word, [shortest, longest]) {
  const padded = Array.from(` ${word} `);
  const hashes = [];
  const add = (characters) => hashes.push(mixed(BigInt(crc32(utf8(characters.join("")), CHARS_SALT))));
  for (let n = shortest; n <= Math.min(longest, padded.length); n += 1) {
    for (let at = 0; at + n <= padded.length; at += 1) add(padded.slice(at, at + n));
  }
  if (!hashes.length) add(padded);
  return hashes;
}

function checkLengths(name, value) {
  if (value === null) return;
  const isPair = Array.isArray(value) && value.length === 2 && value.every(Number.isInteger);
  if (!isPair || value[0] < 1 || value[0] > value[1] || value[1] > MAX_NGRAM) {
    throw new ArtifactError(
      `${name} of hashed text must be two lengths from 1 to ${MAX_NGRAM}, such as [1, 2], or null; got ${repr(value)}`,
    );
  }
}
