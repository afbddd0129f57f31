// Texts as token numbers by a Hugging Face tokenizer, as in `ovr.input.tokens`: not in a browser.

import { ArtifactError } from "./errors.js";

/** Stands for what `load` refuses. */
export class Tokens {
  /** @throws {ArtifactError} always */
  static fromJson() {
    throw new ArtifactError(
      "the model's texts are made into tokens by a Hugging Face tokenizer, which this page does not have; in a browser texts are hashed " +
        "(backbone=bag), or the model is asked on a server",
    );
  }
}
