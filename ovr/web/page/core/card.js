// The model card and the card of the export, as they come: parsed JSON that is checked here before anything is made of it.

import { ArtifactError } from "./errors.js";
import { metadataOf } from "./onnx_bytes.js";
import { repr } from "./python_words.js";
import { sha256 } from "./sha256.js";

const CARD_KEY = "ovr.card";
const CARD_VERSIONS = [1, 2, 3];
const MODELS = ["model.onnx", "model.ort"];
const MODES = ["argmax", "multilabel"];

/**
 * Raise unless the bytes are the model that the card of `ovr export target=edge` names.
 *
 * @param {Uint8Array} bytes
 * @param {object} exportCard
 * @throws {ArtifactError} the card is none of an edge export, or the model was changed
 */
export async function checkModel(bytes, exportCard) {
  const found = exportCard?.target === "edge" ? exportCard.model : null;
  if (!found || !MODELS.includes(found.file)) {
    throw new ArtifactError("card.json is not that of `ovr export target=edge`; expected target and model in it");
  }
  if (bytes.length !== found.size_bytes || (await sha256(bytes)) !== found.sha256) {
    throw new ArtifactError(`${found.file} was changed or cut short: its digest is not the one in card.json; export it again`);
  }
}

/**
 * Return what a model card holds of its classes, their thresholds and the policy.
 *
 * @param {object} card parsed metadata entry `ovr.card`
 * @param {object} exportCard
 * @returns {{classIds: string[], classNames: string[], thresholds: number[], policy: object}}
 * @throws {ArtifactError} another schema version, sizes that do not fit, or the card of another bundle
 */
export function readCard(card, exportCard) {
  if (!CARD_VERSIONS.includes(card?.schema_version)) {
    throw new ArtifactError(
      `the model card has schema_version ${repr(card?.schema_version)}; this ovr reads version ${CARD_VERSIONS.join(" or ")}`,
    );
  }
  const classes = classesOf(card.taxonomy);
  const { thresholds, head_versions: versions } = card;
  if (
    !Array.isArray(thresholds) ||
    !Array.isArray(versions) ||
    classes.length !== thresholds.length ||
    classes.length !== versions.length
  ) {
    throw new ArtifactError(
      `${classes.length} classes, ${versions?.length} versions and ${thresholds?.length} thresholds; expected as many of each`,
    );
  }
  checkThresholds(thresholds);
  const policy = readPolicy(card.policy);
  if (card.bundle_sha256 !== exportCard.bundle_sha256 || classes.length !== exportCard.num_classes) {
    throw new ArtifactError(
      `the model card is of bundle ${String(card.bundle_sha256).slice(0, 12)} and ${classes.length} classes, card.json of ` +
        `${String(exportCard.bundle_sha256).slice(0, 12)} and ${exportCard.num_classes}; export them together again`,
    );
  }
  return { classIds: classes.map(({ id }) => id), classNames: classes.map(({ id, name }) => name || id), thresholds, policy };
}

/**
 * Raise unless a model card is the one in the model: thresholds of another would decide otherwise, and no digest would tell.
 *
 * @param {object} card
 * @param {Uint8Array} bytes of model.onnx; of a file in ONNX Runtime's own format the card cannot be read
 * @throws {ArtifactError} it is another, or the model has none
 */
export function checkIsOfModel(card, bytes) {
  const text = metadataOf(bytes, CARD_KEY);
  if (text === null) throw new ArtifactError(`model.onnx has no ${CARD_KEY} in its metadata; expected what \`ovr export\` makes`);
  if (sorted(JSON.parse(text)) !== sorted(card)) {
    throw new ArtifactError("the model card is not the one in model.onnx; export them together again");
  }
}

function sorted(value) {
  const byName = (entry) =>
    entry && typeof entry === "object" && !Array.isArray(entry)
      ? Object.entries(entry).sort(([one], [other]) => (one < other ? -1 : 1))
      : entry;
  return JSON.stringify(value, (_, entry) => byName(entry));
}

/** Raise ArtifactError unless each threshold is a finite number of at least 0; one above 1 decides for no row. */
export function checkThresholds(thresholds) {
  for (const threshold of thresholds) {
    if (typeof threshold !== "number" || !(threshold >= 0 && threshold < Infinity)) {
      throw new ArtifactError(`the model card has threshold ${repr(threshold)}; expected a finite number of at least 0`);
    }
  }
}

/** Return the policy once it is one that `decide` knows. */
export function readPolicy(policy) {
  const { mode, abstain_below: abstainBelow, top_k: topK } = policy ?? {};
  if (!MODES.includes(mode)) throw new ArtifactError(`decision mode is ${repr(mode)}; expected 'argmax' or 'multilabel'`);
  if (typeof abstainBelow !== "number" || !(abstainBelow >= 0 && abstainBelow <= 1)) {
    throw new ArtifactError(`abstain_below is ${repr(abstainBelow)}; expected a probability from 0 to 1`);
  }
  if (!Number.isInteger(topK) || topK < 1) throw new ArtifactError(`top_k is ${repr(topK)}; expected at least 1, a whole number`);
  return policy;
}

function classesOf(taxonomy) {
  let classes = taxonomy;
  if (taxonomy && !Array.isArray(taxonomy) && typeof taxonomy === "object") {
    const names = Object.keys(taxonomy); // many classes are kept in columns
    classes = (taxonomy.id ?? []).map((_, k) => Object.fromEntries(names.map((name) => [name, taxonomy[name][k]])));
  }
  if (!Array.isArray(classes) || !classes.length || !classes.every((entry) => typeof entry?.id === "string" && entry.id)) {
    throw new ArtifactError("a class in the taxonomy cannot be read: expected an id of each, and at least one");
  }
  return classes;
}
