// Texts by several encoders, one after another in a row, as in `ovr.input.joined`.

import { HashedText } from "./encode_text.js";
import { Tokens } from "./encode_tokens.js";
import { ArtifactError } from "./errors.js";
import { repr } from "./python_words.js";
import { InputSchema } from "./schema.js";
import { TextColumns, textsOf } from "./texts.js";

const KINDS = { text: HashedText, tokens: Tokens };

/** Encodes each text as (L, 2): what every part makes of it, in the order of the parts. */
export class JoinedTexts {
  constructor(parts, columns) {
    if (parts.length < 2) throw new ArtifactError("the encoder of joined texts cannot be read: expected two encoders or more");
    this._parts = parts;
    this.columns = columns;
    this.tensor = new InputSchema([parts.reduce((sum, part) => sum + part.max_tokens, 0), 2]);
  }

  /** Return the encoder of a model card. */
  static fromJson({ parts, columns, joiner }) {
    const made = (Array.isArray(parts) ? parts : []).map(([name, part]) => {
      if (!Object.hasOwn(KINDS, part?.kind)) {
        throw new ArtifactError(`the encoder of joined texts cannot be read: part ${name} is of kind ${repr(part?.kind)}`);
      }
      return KINDS[part.kind].fromJson(part);
    });
    return new JoinedTexts(made, new TextColumns(columns, joiner));
  }

  /** Return texts as one Float32Array of (B, L, 2). */
  encode(rows) {
    const texts = textsOf(rows, this.columns);
    const x = new Float32Array(texts.length * this.tensor.size);
    let start = 0;
    for (const part of this._parts) {
      const { size } = part.tensor;
      const own = part.encode(texts);
      texts.forEach((_, row) => x.set(own.subarray(row * size, (row + 1) * size), row * this.tensor.size + start));
      start += size;
    }
    return x;
  }
}
