// How an encoder is read back, as in `ovr.input.encoder`. Knows no kind of row.
//
// An encoder has `tensor`, an InputSchema, and `encode(rows)`, which returns B rows as one Float32Array or throws InputError. That of
// a table has `objects(rows)`, `knows(column)` and `problems(rows)` too.

import { ImageEncoder } from "./encode_image.js";
import { JoinedTexts } from "./encode_joined.js";
import { SparseRows } from "./encode_sparse.js";
import { TableEncoder } from "./encode_table.js";
import { HashedText } from "./encode_text.js";
import { Tokens } from "./encode_tokens.js";
import { ArtifactError } from "./errors.js";
import { repr } from "./python_words.js";

const KINDS = {
  table: TableEncoder,
  text: HashedText,
  tokens: Tokens,
  joined: JoinedTexts,
  sparse: SparseRows,
  image: ImageEncoder,
};

/**
 * Return the encoder of a model card; null of null, where rows are given as the network takes them.
 *
 * @throws {ArtifactError} an unknown kind, or settings that it cannot read or that cannot be had in a browser
 */
export function encoderFromJson(value) {
  if (value === null || value === undefined) return null;
  if (!Object.hasOwn(KINDS, value.kind)) {
    throw new ArtifactError(
      `the encoder of the input is of kind ${repr(value.kind)}; this ovr knows ${Object.keys(KINDS).join(", ")}`,
    );
  }
  return KINDS[value.kind].fromJson(value);
}
