// Worker: the model's two towers. Takes {id, samples} (a window) or {id, texts}, gives {id, vectors} or {id, error};
// before that {loaded, total} in bytes while it loads, and {settings, background} or {failed} once.

import { Tokenizer } from "@huggingface/tokenizers";
import * as ort from "onnxruntime-web/wasm";
import { LogMel } from "./log_mel.js";

const RUNTIME = "ort-wasm-simd-threaded.wasm";
const CALIBRATION = "calibration.bin"; // not every model has one
const TEXTS = 16; // a run at most, so that memory does not grow with the number of labels

const total = Object.values(SIZES).reduce((sum, bytes) => sum + bytes, 0); // SIZES: of build.mjs
let loaded = 0;

async function download(name) {
  const response = await fetch(name);
  if (!response.ok) throw new Error(`${name}: the server answered ${response.status}`);
  const bytes = new Uint8Array(SIZES[name]);
  let at = 0;
  const reader = response.body.getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    if (at + part.value.length > bytes.length) throw new Error(`${name} is larger than the ${bytes.length} bytes expected`);
    bytes.set(part.value, at);
    at += part.value.length;
    loaded += part.value.length;
    postMessage({ loaded, total });
  }
  if (at !== bytes.length) throw new Error(`${name} ended after ${at} of ${bytes.length} bytes`);
  return bytes;
}

async function load() {
  const [runtime, audio, text, background, ...texts] = await Promise.all([
    ...[RUNTIME, "audio.onnx", "text.onnx"].map(download),
    SIZES[CALIBRATION] ? download(CALIBRATION) : null,
    ...["model.json", "tokenizer.json", "tokenizer_config.json"].map(download),
  ]);
  const [settings, vocabulary, options] = texts.map((bytes) => JSON.parse(new TextDecoder().decode(bytes)));
  ort.env.wasm.wasmBinary = runtime.buffer;
  ort.env.wasm.numThreads = 1; // several need headers that plain file hosts do not send
  // Weights become float32 once, when the graph is loaded, and not in every run.
  const session = { executionProviders: ["wasm"], extra: { session: { disable_quant_qdq: "1" } } };
  return {
    settings,
    background: background && new Float32Array(background.buffer),
    logMel: new LogMel(settings),
    tokenizer: new Tokenizer(vocabulary, options),
    audio: await ort.InferenceSession.create(audio, session),
    text: await ort.InferenceSession.create(text, session),
  };
}

async function rowsOf(session, feeds) {
  const output = (await session.run(feeds))[session.outputNames[0]];
  const [rows, size] = output.dims;
  return Array.from({ length: rows }, (_, row) => output.data.slice(row * size, (row + 1) * size));
}

function embedWindow({ logMel, audio, settings }, samples) {
  const frames = logMel.frames(samples.length);
  const shape = [1, 1, frames, settings.mel_filters.length];
  return rowsOf(audio, { input_features: new ort.Tensor("float32", logMel.compute(samples), shape) });
}

// Token ids of a text, cut to the longest that the model takes; the tokens that end every text stay.
export function tokenize(tokenizer, text, { max_tokens: most, end_ids: ends }) {
  const ids = tokenizer.encode(text).ids;
  return ids.length > most ? [...ids.slice(0, most - ends.length), ...ends] : ids;
}

async function embedTexts({ tokenizer, text, settings }, texts) {
  const vectors = [];
  for (let start = 0; start < texts.length; start += TEXTS) {
    const tokens = texts.slice(start, start + TEXTS).map((each) => tokenize(tokenizer, each, settings));
    const longest = Math.max(1, ...tokens.map((ids) => ids.length));
    const shape = [tokens.length, longest];
    const ids = new BigInt64Array(tokens.length * longest); // padded with zeros, which the mask leaves out
    const mask = new BigInt64Array(tokens.length * longest);
    tokens.forEach((row, i) => row.forEach((id, j) => {
      ids[i * longest + j] = BigInt(id);
      mask[i * longest + j] = 1n;
    }));
    vectors.push(...(await rowsOf(text, {
      input_ids: new ort.Tensor("int64", ids, shape),
      attention_mask: new ort.Tensor("int64", mask, shape),
    })));
  }
  return vectors;
}

const model = load();
model.then(
  ({ settings, background }) => postMessage({ settings, background }),
  (error) => postMessage({ failed: error.message }),
);

let previous = model; // one run at a time: the runtime has one thread
onmessage = ({ data: { id, samples, texts } }) => {
  previous = previous.catch(() => {}).then(async () => {
    try {
      const towers = await model;
      const vectors = await (samples ? embedWindow(towers, samples) : embedTexts(towers, texts));
      postMessage({ id, vectors });
    } catch (error) {
      postMessage({ id, error: error.message });
    }
  });
};
