// The one function that turns probabilities into a decision, as in `ovr.decision.decide`. Knows nothing of where they came from.
//
// B = batch, K = heads

import { ArtifactError, InputError } from "./errors.js";
import { floatRepr, repr, tuple } from "./python_words.js";

/**
 * @typedef {{labels: number[][], abstained: boolean[], top: number[][]}} Decision columns decided on a row, in column order;
 *   whether it abstained; the columns of the highest probabilities, falling, ties by rising column
 */

/**
 * Return the decision of a policy on probabilities; thresholds and the abstention limit are compared as float32.
 *
 * @param {ArrayLike<number>[]} probabilities B rows of K, in [0, 1]
 * @param {{thresholds: number[], policy: {mode: string, abstain_below: number, top_k: number}}} how
 * @returns {Decision}
 * @throws {InputError} not K numbers a row with K >= 1, NaN, or outside [0, 1]
 * @throws {ArtifactError} not one threshold a head, or one that is NaN
 */
export function decide(probabilities, { thresholds, policy }) {
  const numHeads = probabilities.length ? probabilities[0].length : thresholds.length;
  if (thresholds.length !== numHeads || thresholds.some(Number.isNaN)) {
    throw new ArtifactError(
      `thresholds are [${thresholds.join(" ")}] of shape ${tuple([thresholds.length])}; expected ${numHeads} numbers, one a head`,
    );
  }
  const threshold = Float32Array.from(thresholds);
  const abstainBelow = Math.fround(policy.abstain_below);
  const decision = { labels: [], abstained: [], top: [] };
  probabilities.forEach((given, row) => {
    const prob = checked(given, row, numHeads);
    const top = topColumns(prob, Math.min(policy.top_k, numHeads));
    const abstained = prob[top[0]] < abstainBelow;
    let labels = [];
    if (!abstained) labels = policy.mode === "multilabel" ? columnsAtOrAbove(prob, threshold) : [top[0]];
    decision.labels.push(labels);
    decision.abstained.push(abstained);
    decision.top.push(top);
  });
  return decision;
}

/** Return the columns whose probability is at or above their threshold, both compared as float32. */
export function columnsAtOrAbove(prob, thresholds) {
  const columns = [];
  for (let k = 0; k < prob.length; k += 1) if (Math.fround(prob[k]) >= Math.fround(thresholds[k])) columns.push(k);
  return columns;
}

function checked(given, row, numHeads) {
  if (given.length !== numHeads || numHeads === 0) {
    throw new InputError(`probabilities of row ${row} have shape ${tuple([given.length])}; expected numbers (rows, heads)`);
  }
  for (let k = 0; k < numHeads; k += 1) {
    if (!(given[k] >= 0 && given[k] <= 1)) {
      const shown = typeof given[k] === "number" ? floatRepr(given[k]) : repr(given[k]);
      throw new InputError(`probability of row ${row}, head column ${k} is ${shown}; expected 0 to 1`);
    }
  }
  return Float32Array.from(given);
}

function topColumns(prob, count) {
  const columns = Array.from(prob, (_, k) => k);
  return columns.sort((one, other) => prob[other] - prob[one] || one - other).slice(0, count);
}
