// What a Hugging Face tokenizer does to a text before its model sees it: normalizers and pre-tokenizers, named as in tokenizer.json.
//
// They are as in the Rust library, whose Unicode tables are old; see token_unicode.js. Only letters that got a decomposition since,
// such as U+11938, keep their marks there and lose them here.

import { ArtifactError } from "./errors.js";
import { repr } from "./python_words.js";
import { OLD_MARKS, OLD_PUNCTUATION, YOUNG_FORMATS, YOUNG_MARKS, YOUNG_PUNCTUATION } from "./token_unicode.js";

const WHITE = "\\t-\\r \\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000"; // White_Space of Unicode
const MARK = new RegExp(`(?![${YOUNG_MARKS}])[\\p{Mn}${OLD_MARKS}]`, "gu");
const OTHER = new RegExp(`(?![\\t\\n\\r${YOUNG_FORMATS}])[\\ufffd\\p{Cc}\\p{Cf}\\p{Co}]`, "gu");
// Of ASCII also what Unicode calls symbols.
const PUNCTUATION = `(?![${YOUNG_PUNCTUATION}])[!-\\/:-@\\[-\`{-~\\p{P}${OLD_PUNCTUATION}]`;
const BERT_WORD = new RegExp(`${PUNCTUATION}|(?:(?!${PUNCTUATION})[^${WHITE}])+`, "gu");
const CHINESE =
  /[\u4e00-\u9fff\u3400-\u4dbf\u{20000}-\u{2a6df}\u{2a700}-\u{2b73f}\u{2b740}-\u{2b81f}\u{2b920}-\u{2ceaf}\uf900-\ufaff\u{2f800}-\u{2fa1f}]/gu;
const BYTE_LEVEL = new RegExp(
  `'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^${WHITE}\\p{L}\\p{N}]+|[${WHITE}]+(?![^${WHITE}])|[${WHITE}]+`,
  "gu",
);

const accentless = (text) => text.normalize("NFD").replace(MARK, "");
const lower = (text) => Array.from(text, (character) => character.toLowerCase()).join(""); // each alone: no final sigma

const NORMALIZERS = {
  NFC: () => (text) => text.normalize("NFC"),
  NFD: () => (text) => text.normalize("NFD"),
  NFKC: () => (text) => text.normalize("NFKC"),
  NFKD: () => (text) => text.normalize("NFKD"),
  Lowercase: () => lower,
  StripAccents: () => (text) => text.replace(/\p{M}/gu, ""),
  BertNormalizer: bertNormalizer,
  Sequence: ({ normalizers }) => inTurn(normalizers.map(normalizer)),
};

const SPLITS = {
  BertPreTokenizer: () => (text) => text.match(BERT_WORD) ?? [],
  WhitespaceSplit: () => (text) => text.match(new RegExp(`[^${WHITE}]+`, "gu")) ?? [],
  ByteLevel: byteLevel,
};

/** Return the function that the normalizer of a tokenizer.json is. */
export function normalizer(settings) {
  if (settings === null || settings === undefined) return (text) => text;
  return known(NORMALIZERS, settings, "normalizer")(settings);
}

/** Return the function that makes words of a text, as the pre-tokenizer of a tokenizer.json does. */
export function splitter(settings) {
  if (settings === null || settings === undefined) return (text) => (text ? [text] : []);
  return known(SPLITS, settings, "pre_tokenizer")(settings);
}

/** Return the entry for the type of a part of a tokenizer.json. */
export function known(entries, settings, part) {
  if (Object.hasOwn(entries, settings.type)) return entries[settings.type];
  throw new ArtifactError(
    `the tokenizer's ${part} is of type ${repr(settings.type)}, which a browser's predictor does not have; it has ` +
      `${Object.keys(entries).join(", ")}; ask such a model on a server`,
  );
}

/** Return a function that is others one after another. */
export function inTurn(functions) {
  return (value) => functions.reduce((made, each) => each(made), value);
}

function bertNormalizer({ clean_text: clean, handle_chinese_chars: chinese, strip_accents: strip, lowercase }) {
  const steps = [];
  if (clean) steps.push((text) => text.replace(OTHER, "").replace(new RegExp(`[${WHITE}]`, "gu"), " "));
  if (chinese) steps.push((text) => text.replace(CHINESE, " $& "));
  if (strip ?? lowercase) steps.push(accentless);
  if (lowercase) steps.push(lower);
  return inTurn(steps);
}

function byteLevel({ add_prefix_space: prefix, use_regex: byWords = true }) {
  const characters = byteCharacters();
  const encoder = new TextEncoder();
  const shown = (word) => Array.from(encoder.encode(word), (byte) => characters[byte]).join("");
  return (text) => {
    const whole = prefix && !text.startsWith(" ") ? ` ${text}` : text;
    return (byWords ? (whole.match(BYTE_LEVEL) ?? []) : [whole]).map(shown);
  };
}

/** Return the character that stands for each byte, as in GPT-2. */
function byteCharacters() {
  let next = 256;
  return Array.from({ length: 256 }, (_, byte) => {
    const isShown = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    if (isShown) return String.fromCodePoint(byte);
    next += 1;
    return String.fromCodePoint(next - 1);
  });
}
