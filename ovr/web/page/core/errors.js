// What is thrown to callers, as in `ovr.errors`.

/** Base of every error that is meant for a caller. */
export class OvrError extends Error {
  constructor(message) {
    super(message);
    this.name = this.constructor.name;
  }
}

/** A file that is damaged, is none of ovr's, or that cannot be run here. */
export class ArtifactError extends OvrError {}

/** Rows, cohorts or thresholds that the model cannot take. */
export class InputError extends OvrError {
  /**
   * @param {string} message
   * @param {string|null} column the one that the message is about, where it is about one
   */
  constructor(message, column = null) {
    super(message);
    this.column = column;
  }
}
