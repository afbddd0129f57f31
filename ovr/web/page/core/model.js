// Predictions from one ONNX file in a browser, as `ovr.EdgePredictor` gives them. Knows nothing of pages.
//
// B = batch, K = heads

import { checkIsOfModel, checkModel, checkThresholds, readCard } from "./card.js";
import { COHORT, cohortNames, cohortNumbers, takeColumn } from "./cohorts.js";
import { columnsAtOrAbove, decide } from "./decide.js";
import { encoderFromJson } from "./encoder.js";
import { ArtifactError, InputError } from "./errors.js";
import { withoutInitializer } from "./onnx_bytes.js";
import { outOfScopeScore } from "./outcomes.js";
import { repr, typeName } from "./python_words.js";
import { rowProblems } from "./row_problems.js";
import { checkRows, InputSchema } from "./schema.js";

const OUTPUT = "prob";

/**
 * @typedef {object} Prediction one entry a row, but for the classes
 * @property {string[]} classIds of the K columns
 * @property {number[]} thresholds of the K columns, those that were decided with
 * @property {Float32Array[]} probabilities calibrated, each for its own class: a row need not sum to 1
 * @property {string[][]} decisions ids of the classes decided on, in column order; none where it abstained
 * @property {boolean[]} abstained
 * @property {{class: string, prob: number}[][]} top the highest probabilities, falling
 * @property {string[][]} predictionSets ids of the classes at or above their thresholds, whatever the policy
 * @property {number[]} outOfScopeScores entropy in nats; higher is more likely a row of none of the classes
 * @property {(string|null)[]|null} cohorts whose calibration was used, null for the pooled one; null of a model without cohorts
 */

/**
 * Return a model that is ready to predict.
 *
 * @param {object} ort onnxruntime-web, or what has its InferenceSession and Tensor
 * @param {Uint8Array} modelBytes
 * @param {object} exportCard parsed card.json of `ovr export target=edge`
 * @param {object} modelCard parsed metadata entry `ovr.card` of the model
 * @param {object} sessionOptions of ONNX Runtime
 * @returns {Promise<Model>}
 * @throws {ArtifactError} the model was changed, the cards do not fit it, or its encoder cannot be had in a browser
 */
export async function load(ort, modelBytes, exportCard, modelCard, sessionOptions = { executionProviders: ["wasm"] }) {
  await checkModel(modelBytes, exportCard);
  const read = readCard(modelCard, exportCard);
  const schema = InputSchema.fromJson(modelCard.input);
  const encoder = encoderFromJson(modelCard.input.encoder);
  if (encoder !== null && encoder.tensor.shape.join() !== schema.shape.join()) {
    throw new ArtifactError(`the encoder makes rows of shape (${encoder.tensor.shape}), the model takes (${schema.shape})`);
  }
  const isOnnx = exportCard.model.file === "model.onnx";
  if (isOnnx) checkIsOfModel(modelCard, modelBytes);
  if (modelCard.cohorts && !isOnnx) {
    throw new ArtifactError("a model with cohorts runs in a browser as ONNX; export it with format=onnx");
  }
  const graph = modelCard.cohorts ? withoutInitializer(modelBytes, COHORT) : modelBytes;
  let session;
  try {
    session = await ort.InferenceSession.create(graph, sessionOptions);
  } catch (error) {
    const { file, opset, ir_version: irVersion } = exportCard.model;
    throw new ArtifactError(
      `${file}, of opset ${opset} and IR version ${irVersion}, cannot be opened by this onnxruntime-web: ${error?.message ?? error}`,
    );
  }
  return new Model(ort, session, modelCard, read, schema, encoder);
}

/** A fused model with what makes its input of rows as a user has them. */
export class Model {
  constructor(ort, session, card, read, schema, encoder) {
    this._ort = ort;
    this._session = session;
    this.card = card;
    this.classIds = read.classIds;
    this.classNames = read.classNames;
    this.thresholds = read.thresholds;
    this.policy = read.policy;
    this.schema = schema;
    this.encoder = encoder;
  }

  /**
   * Return rows as the network takes them, one Float32Array of (B, *shape).
   *
   * @param {Array} rows
   * @returns {Float32Array}
   * @throws {InputError} a row that does not fit, naming row and column
   */
  encode(rows) {
    return this._encoded(this._split(rows).rows);
  }

  /**
   * Return what is wrong with the rows that `encode` refuses, in order; empty where it takes all.
   *
   * @param {Array} rows
   * @param {{cohort?: null|string|Array}} options
   * @returns {{row: number, column: string|null, message: string}[]}
   * @throws {InputError} `rows` is no array or empty, or a cohort is given that the model cannot take
   */
  check(rows, { cohort = null } = {}) {
    this._checkTakesCohort(cohort);
    const split = this._split(rows);
    if (this.card.cohorts) cohortNames(cohort ?? split.cells, rows.length);
    if (!rows.length) this._encoded(split.rows);
    if (this.encoder?.problems) {
      try {
        return this.encoder.problems(split.rows);
      } catch (error) {
        if (!(error instanceof InputError)) throw error; // rows that are no objects, or have other columns
      }
    }
    return rowProblems(split.rows, (some) => this._encoded(some));
  }

  /**
   * Return probabilities and what the model's policy decides on them.
   *
   * @param {Array} rows of a table: objects with a value a column, or arrays of values in the order of the columns; of texts:
   *   texts, or objects with the columns that a text is made of; of images: `{width, height, data}` as ImageData; otherwise and of images
   *   as well: arrays of the schema's shape, flat or nested, of raw values
   * @param {{cohort?: null|string|Array, threshold?: null|number|Object<string, number>, topK?: null|number}} options cohort: one
   *   for all rows or one a row, by default that of the rows' own column; threshold: instead of the heads' own, for all or by class id
   * @returns {Promise<Prediction>}
   * @throws {InputError} what `encode` and `check` say
   */
  async predict(rows, { cohort = null, threshold = null, topK = null } = {}) {
    this._checkTakesCohort(cohort);
    const thresholds = this._thresholds(threshold);
    const policy = this._policy(topK);
    const split = this._split(rows);
    const x = this._encoded(split.rows);
    const numRows = x.length / this.schema.size;
    const feed = { [this.schema.name]: new this._ort.Tensor("float32", x, [numRows, ...this.schema.shape]) };
    let cohorts = null;
    if (this.card.cohorts) {
      const numbers = cohortNumbers(cohortNames(cohort ?? split.cells, numRows), this.card.cohorts);
      feed[COHORT] = new this._ort.Tensor("int64", numbers, [numRows, 1]);
      cohorts = Array.from(numbers, (number) => (number ? this.card.cohorts.names[Number(number) - 1] : null));
    }
    const { data } = (await this._session.run(feed, [OUTPUT]))[OUTPUT];
    const numHeads = this.classIds.length;
    const probabilities = Array.from({ length: numRows }, (_, row) =>
      Float32Array.from(data.subarray(row * numHeads, (row + 1) * numHeads)),
    );
    return { ...this.decide(probabilities, { thresholds, policy }), cohorts };
  }

  /**
   * Return the prediction that given probabilities are.
   *
   * @param {ArrayLike<number>[]} probabilities B rows of K
   * @param {{thresholds?: number[], policy?: object}} how by default as the card says
   * @returns {Prediction}
   */
  decide(probabilities, { thresholds = this.thresholds, policy = this.policy } = {}) {
    const decision = decide(probabilities, { thresholds, policy });
    const ids = this.classIds;
    const named = (columns) => columns.map((k) => ids[k]);
    return {
      classIds: ids,
      thresholds,
      probabilities,
      decisions: decision.labels.map(named),
      abstained: decision.abstained,
      top: decision.top.map((columns, row) => columns.map((k) => ({ class: ids[k], prob: probabilities[row][k] }))),
      predictionSets: probabilities.map((prob) => named(columnsAtOrAbove(prob, thresholds))),
      outOfScopeScores: probabilities.map(outOfScopeScore),
      cohorts: null,
    };
  }

  _split(rows) {
    if (!Array.isArray(rows)) throw new InputError(`rows are ${typeName(rows)}; expected an array with a row each`);
    const given = this.encoder?.objects ? this.encoder.objects(rows) : rows;
    if (!this.card.cohorts || !this.encoder?.objects) return { cells: null, rows: given };
    const { column } = this.card.cohorts;
    return takeColumn(given, column, this.encoder.knows(column));
  }

  _encoded(rows) {
    return this.encoder === null ? checkRows(rows, this.schema) : this.encoder.encode(rows);
  }

  _checkTakesCohort(cohort) {
    if (cohort !== null && cohort !== undefined && !this.card.cohorts) {
      throw new InputError(
        "cohort is given, but this model has one calibration for all rows; leave it out, or train with cohort.column=COLUMN " +
          "for a calibration a cohort",
      );
    }
  }

  _thresholds(given) {
    if (given === null || given === undefined) return this.thresholds;
    const isOne = typeof given !== "object";
    const unknown = isOne ? [] : Object.keys(given).filter((id) => !this.classIds.includes(id));
    if (unknown.length) throw new InputError(`threshold names ${repr(unknown[0])}, which is no class of the model`);
    const thresholds = this.classIds.map((id, k) => (isOne ? given : Object.hasOwn(given, id) ? given[id] : this.thresholds[k]));
    try {
      checkThresholds(thresholds);
    } catch (error) {
      throw new InputError(error.message);
    }
    return thresholds;
  }

  _policy(topK) {
    if (topK === null || topK === undefined) return this.policy;
    if (!Number.isInteger(topK) || topK < 1) throw new InputError(`top_k is ${repr(topK)}; expected at least 1, a whole number`);
    return { ...this.policy, top_k: topK };
  }
}
