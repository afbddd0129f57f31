// The models of a Hugging Face tokenizer that make token numbers of one word: WordPiece and byte-pair encoding.

import { ArtifactError } from "./errors.js";
import { known } from "./token_texts.js";

const MODELS = { WordPiece: wordPiece, BPE: bytePairs };

/** Return the function that makes numbers of a word, as the model of a tokenizer.json does. */
export function tokenModel(settings) {
  return known(MODELS, settings, "model")(settings);
}

function wordPiece({ vocab, unk_token: unknown, continuing_subword_prefix: prefix, max_input_chars_per_word: most }) {
  const number = new Map(Object.entries(vocab));
  if (!number.has(unknown)) throw new ArtifactError(`the tokenizer's vocabulary lacks its own ${unknown}`);
  return (word) => {
    const characters = Array.from(word);
    if (characters.length > most) return [number.get(unknown)];
    const numbers = [];
    for (let start = 0; start < characters.length;) {
      let stop = characters.length;
      let found;
      for (; stop > start; stop -= 1) {
        const piece = characters.slice(start, stop).join("");
        found = number.get(start ? prefix + piece : piece);
        if (found !== undefined) break;
      }
      if (found === undefined) return [number.get(unknown)];
      numbers.push(found);
      start = stop;
    }
    return numbers;
  };
}

function bytePairs(settings) {
  for (const name of [
    "dropout",
    "continuing_subword_prefix",
    "end_of_word_suffix",
    "unk_token",
    "byte_fallback",
    "ignore_merges",
  ]) {
    if (settings[name]) throw new ArtifactError(`the tokenizer's model has ${name}, which a browser's predictor does not have`);
  }
  const number = new Map(Object.entries(settings.vocab));
  const rank = new Map(settings.merges.map((pair, at) => [Array.isArray(pair) ? pair.join(" ") : pair, at]));
  const known = new Map();
  return (word) => {
    if (!known.has(word))
      known.set(
        word,
        merged(Array.from(word), rank).flatMap((piece) => number.get(piece) ?? []),
      );
    return known.get(word);
  };
}

function merged(pieces, rank) {
  const parts = [...pieces];
  const rankOf = (at) => (at >= 0 && at + 1 < parts.length ? (rank.get(`${parts[at]} ${parts[at + 1]}`) ?? Infinity) : Infinity);
  const ranks = parts.map((_, at) => rankOf(at));
  for (;;) {
    let at = 0;
    for (let n = 1; n < ranks.length; n += 1) if (ranks[n] < ranks[at]) at = n;
    if (!(ranks[at] < Infinity)) return parts;
    parts.splice(at, 2, parts[at] + parts[at + 1]);
    ranks.splice(at + 1, 1);
    ranks[at] = rankOf(at);
    if (at > 0) ranks[at - 1] = rankOf(at - 1);
  }
}
