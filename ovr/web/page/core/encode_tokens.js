// Texts as token numbers by a Hugging Face tokenizer, as in `ovr.input.tokens`: those of the BERT and GPT-2 families.
//
// WordPiece with BERT's splitting, and byte-pair encoding of bytes; `load` refuses any other tokenizer.json and names what is amiss.

import { ArtifactError, InputError } from "./errors.js";
import { repr, shortRepr, typeName } from "./python_words.js";
import { InputSchema } from "./schema.js";
import { TextColumns } from "./texts.js";
import { known, normalizer, splitter } from "./token_texts.js";
import { tokenModel } from "./token_models.js";

const MAX_CHARACTERS = 100_000;
const MAX_MAX_TOKENS = 8192;
const PAD_TOKENS = ["[PAD]", "<pad>", "<|padding|>", "<|pad|>"];
const AROUND = {
  BertProcessing: ({ cls, sep }) => [[cls[1]], [sep[1]]],
  RobertaProcessing: ({ cls, sep }) => [[cls[1]], [sep[1]]],
  ByteLevel: () => [[], []],
  TemplateProcessing: template,
  Sequence: ({ processors }) =>
    processors.map(around).reduce(
      ([before, after], [first, last]) => [
        [...first, ...before],
        [...after, ...last],
      ],
      [[], []],
    ),
};

/** Encodes each text as (max_tokens, 2): the numbers of its tokens, each with weight 1, then padding of weight 0. */
export class Tokens {
  constructor({ tokenizer, max_tokens: maxTokens, columns, joiner }) {
    if (!Number.isInteger(maxTokens) || maxTokens < 1 || maxTokens > MAX_MAX_TOKENS) {
      throw new ArtifactError(
        `the encoder of the input cannot be read: max_tokens must be a whole number from 1 to ${MAX_MAX_TOKENS}, ` +
          `got ${repr(maxTokens)}`,
      );
    }
    const parts = parsed(tokenizer);
    this.max_tokens = maxTokens;
    this.columns = new TextColumns(columns, joiner);
    this.tensor = new InputSchema([maxTokens, 2]);
    this._normal = normalizer(parts.normalizer);
    this._split = splitter(parts.pre_tokenizer);
    this._numbers = tokenModel(parts.model);
    [this._before, this._after] = around(parts.post_processor);
    const added = addedTokens(parts);
    this._added = new Map(added.map((token) => [token.content, token]));
    this._pattern = new RegExp(added.map(({ content }) => content.replace(/[\\^$.*+?(){}[\]|/-]/g, "\\$&")).join("|"), "g");
    const number = new Map([...Object.entries(parts.model.vocab), ...added.map(({ content, id }) => [content, id])]);
    this._pad = PAD_TOKENS.map((token) => number.get(token)).find((found) => found !== undefined) ?? 0;
  }

  /** Return the encoder of a model card. */
  static fromJson(value) {
    return new Tokens(value);
  }

  /**
   * Return texts as one Float32Array of (B, max_tokens, 2).
   *
   * @param {(string|object)[]} rows
   * @throws {InputError} a row that is no text or no valid unicode, or no rows
   */
  encode(rows) {
    const texts = this._texts(rows);
    const { size } = this.tensor;
    const x = new Float32Array(texts.length * size);
    texts.forEach((text, row) => {
      const numbers = this.numbers(text);
      for (let place = 0; place < this.max_tokens; place += 1) {
        x[row * size + 2 * place] = numbers[place] ?? this._pad;
        x[row * size + 2 * place + 1] = place < numbers.length ? 1 : 0;
      }
    });
    return x;
  }

  /** Return the token numbers of a text, those around it included. */
  numbers(text) {
    const characters = Array.from(text);
    const cut = characters.length > MAX_CHARACTERS ? characters.slice(0, MAX_CHARACTERS).join("") : text;
    const numbers = [];
    for (const part of this._parts(cut)) {
      if (typeof part === "number") numbers.push(part);
      else for (const word of this._split(this._normal(part))) numbers.push(...this._numbers(word));
    }
    const most = Math.max(0, this.max_tokens - this._before.length - this._after.length);
    return [...this._before, ...numbers.slice(0, most), ...this._after];
  }

  /** Return what stands between the added tokens of a text, and their numbers. */
  _parts(text) {
    const parts = [];
    let start = 0;
    for (const { 0: content, index } of this._added.size ? text.matchAll(this._pattern) : []) {
      if (index < start) continue; // blanks after the token before were taken, and this stands in them
      const { id, lstrip, rstrip } = this._added.get(content);
      const before = text.slice(start, index);
      parts.push(lstrip ? before.replace(/\p{White_Space}+$/u, "") : before, id);
      start = index + content.length;
      if (rstrip) start += /^\p{White_Space}*/u.exec(text.slice(start))[0].length;
    }
    return [...parts, text.slice(start)].filter((part) => part !== "");
  }

  _texts(rows) {
    if (!Array.isArray(rows)) {
      const hint = typeof rows === "string" ? "a single str; put it into a list" : typeName(rows);
      throw new InputError(`rows must be a sequence of texts, got ${hint}`);
    }
    if (!rows.length) throw new InputError("got no rows; expected at least one text");
    const texts = rows.map((row, number) => {
      const isObject = row !== null && typeof row === "object" && !Array.isArray(row) && !ArrayBuffer.isView(row);
      const text = isObject ? this.columns.textOf(row, number) : row;
      if (typeof text !== "string") throw new InputError(`row ${number} is ${typeName(text)} ${shortRepr(text)}; expected a text`);
      return text;
    });
    texts.forEach((text, number) => {
      const half = Array.from(text).findIndex((character) => /^[\ud800-\udfff]$/.test(character));
      if (half >= 0) throw new InputError(`row ${number} is no valid unicode: character ${half} is half of a surrogate pair`);
    });
    return texts;
  }
}

function parsed(tokenizer) {
  let parts;
  try {
    parts = JSON.parse(tokenizer);
  } catch (error) {
    throw new ArtifactError(`this is no tokenizer.json: ${error.message}`);
  }
  if (typeof parts?.model?.vocab !== "object")
    throw new ArtifactError("this is no tokenizer.json: it has no model with a vocabulary");
  return { ...parts, model: { ...parts.model, type: parts.model.type ?? (parts.model.merges ? "BPE" : "WordPiece") } };
}

function addedTokens({ added_tokens: added, normalizer: settings }) {
  for (const { content, single_word: single, normalized } of added ?? []) {
    if (single || (normalized && settings)) {
      throw new ArtifactError(
        `the tokenizer's token ${repr(content)} is one ${single ? "of single words" : "that is looked for in normalized text"}, ` +
          "which a browser's predictor does not have",
      );
    }
  }
  return (added ?? []).filter(({ content }) => content).sort((one, other) => other.content.length - one.content.length);
}

/** Return the numbers that stand before and after those of a text. */
function around(settings) {
  return settings ? known(AROUND, settings, "post_processor")(settings) : [[], []];
}

function template({ single, special_tokens: special }) {
  const at = single.findIndex((piece) => piece.Sequence !== undefined);
  const numbers = (pieces) => pieces.flatMap((piece) => special[piece.SpecialToken.id].ids);
  return [numbers(single.slice(0, at)), numbers(single.slice(at + 1))];
}
