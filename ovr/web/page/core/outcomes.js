// What K probabilities, each for its own class, say of a row as a whole, as in `ovr.core.outcomes`: see there what is assumed.
//
// Sums are added up in another order than numpy does: the last digits of a float64 may differ.

const LEAST = 2 ** -126; // probabilities are float32: one that is 0 or 1 there is not known any better
const MOST = 1 - 2 ** -24;

/** Return log(prob / (1 - prob)) of each; of a probability of 0 or 1, that of the float32 number next to it. */
export function logOdds(prob) {
  return Array.from(prob, (p) => {
    const clipped = Math.min(Math.max(p, LEAST), MOST);
    return Math.log(clipped) - Math.log1p(-clipped);
  });
}

/** Return the probability of none of the classes, if they are independent. */
export function probNone(prob) {
  return Math.exp(sum(Array.from(prob, (p) => Math.log1p(-Math.min(p, MOST)))));
}

/** Return the probability of none of the classes, if a row has one at most. */
export function probNoneExclusive(prob) {
  const odds = logOdds(prob);
  const highest = Math.max(0, largest(odds));
  const none = Math.exp(-highest);
  return none / (none + sum(odds.map((odd) => Math.exp(odd - highest))));
}

/** Return probabilities that sum to 1, of exactly one class. */
export function probNormalized(prob) {
  const odds = logOdds(prob);
  const highest = largest(odds);
  const weights = odds.map((odd) => Math.exp(odd - highest));
  const total = sum(weights);
  return weights.map((weight) => weight / total);
}

/** Return how much a row looks like one of none of the classes: the entropy, in nats, of `probNormalized`. */
export function outOfScopeScore(prob) {
  return -sum(probNormalized(prob).map((p) => (p > 0 ? p * Math.log(p) : 0)));
}

function sum(values) {
  return values.reduce((total, value) => total + value, 0);
}

function largest(values) {
  return values.reduce((most, value) => Math.max(most, value), -Infinity);
}
