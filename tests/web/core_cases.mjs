// Runs cases of tests/web/test_core.py through ovr/web/page/core: node core_cases.mjs CASES.json > ANSWERS.json
//
// A number that JSON has not is {"$number": "NaN"}; arrays of float32 come back as base64 of their bytes.

import { readFileSync } from "node:fs";
import { Buffer } from "node:buffer";

const core = new URL("../../ovr/web/page/core/", import.meta.url);
const { load, Model } = await import(new URL("model.js", core));
const { encoderFromJson } = await import(new URL("encoder.js", core));
const { decide } = await import(new URL("decide.js", core));
const { InputSchema } = await import(new URL("schema.js", core));
const { sha256, sha256Bytes } = await import(new URL("sha256.js", core));
const { repr, general, floatOf } = await import(new URL("python_words.js", core));
const outcomes = await import(new URL("outcomes.js", core));
const { cohortNames, cohortNumbers } = await import(new URL("cohorts.js", core));
const { TimeFormat } = await import(new URL("strptime.js", core));
const { ImageEncoder } = await import(new URL("encode_image.js", core));

const base64 = (floats) => Buffer.from(floats.buffer, floats.byteOffset, floats.byteLength).toString("base64");

function attempt(call) {
  try {
    return { value: call() };
  } catch (error) {
    if (error.name === "InputError" || error.name === "ArtifactError") return { error: error.message, name: error.name };
    throw error;
  }
}

const RUN = {
  encode({ input, cohorts = null, rows }) {
    const read = { classIds: ["a"], classNames: ["a"], thresholds: [0.5], policy: {} };
    const made = attempt(
      () => new Model(null, null, { cohorts }, read, InputSchema.fromJson(input), encoderFromJson(input.encoder)),
    );
    if (made.error) return { load: made.error };
    const model = made.value;
    return { encoded: attempt(() => base64(model.encode(rows))), check: attempt(() => model.check(rows)) };
  },
  image({ encoder, width, height, pixels }) {
    const data = new Uint8ClampedArray(Buffer.from(pixels, "base64"));
    return attempt(() => base64(ImageEncoder.fromJson(encoder).encode([{ width, height, data }])));
  },
  decide({ prob, thresholds, policy }) {
    const given = prob.map((row) => Float32Array.from(row));
    const [none, exclusive] = [given.map(outcomes.probNone), given.map(outcomes.probNoneExclusive)];
    const [normalized, score] = [given.map(outcomes.probNormalized), given.map(outcomes.outOfScopeScore)];
    return attempt(() => ({ ...decide(given, { thresholds, policy }), none, exclusive, normalized, score }));
  },
  cohorts: ({ cohort, numRows, names }) =>
    attempt(() => Array.from(cohortNumbers(cohortNames(cohort, numRows), { names }), Number)),
  // What is handed to ONNX Runtime and what is made of its answer: the run itself is recorded.
  async load({ model, exportCard, modelCard, rows, options, prob }) {
    const seen = {};
    class Tensor {
      constructor(type, data, dims) {
        Object.assign(this, { type, data, dims });
      }
    }
    const session = {
      run: async (feed, outputs) => {
        seen.feed = Object.fromEntries(
          Object.entries(feed).map(([name, { type, data, dims }]) => [name, { type, dims, data: Array.from(data, Number) }]),
        );
        return { [outputs[0]]: new Tensor("float32", Float32Array.from(prob.flat()), [prob.length, prob[0].length]) };
      },
    };
    const create = async (bytes) => {
      if (!prob) throw new Error("an opset of tomorrow");
      seen.opened = Buffer.from(bytes).toString("base64");
      return session;
    };
    try {
      const made = await load(
        { InferenceSession: { create }, Tensor },
        new Uint8Array(Buffer.from(model, "base64")),
        exportCard,
        modelCard,
      );
      const check = attempt(() => made.check(rows, { cohort: options.cohort }));
      const prediction = await made.predict(rows, options);
      return {
        ...seen,
        check,
        prediction: { ...prediction, probabilities: prediction.probabilities.map((row) => Array.from(row)) },
      };
    } catch (error) {
      if (error.name === "InputError" || error.name === "ArtifactError") return { error: error.message };
      throw error;
    }
  },
  async sha256({ bytes }) {
    const data = new Uint8Array(Buffer.from(bytes, "base64"));
    return [await sha256(data), Buffer.from(sha256Bytes(data)).toString("hex")];
  },
  repr: ({ values }) => values.map(repr),
  general: ({ values }) => values.map(general),
  written({ format, seconds }) {
    const known = new TimeFormat(format);
    return seconds.map((second) => [known.written(second), known.seconds(known.written(second))]);
  },
  float: ({ texts }) => texts.map((text) => String(floatOf(text))),
};

const revive = (_, value) => (value !== null && typeof value === "object" && "$number" in value ? Number(value.$number) : value);
const cases = JSON.parse(readFileSync(process.argv[2], "utf8"), revive);
const answers = [];
for (const { kind, ...settings } of cases) answers.push(await RUN[kind](settings));
process.stdout.write(JSON.stringify(answers));
