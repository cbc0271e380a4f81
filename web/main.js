// The page: sounds in, labels, hits and a timeline out. The model is in the worker `towers.js`.

import { decode, fill, wav, windowStarts } from "./audio.js";
import { Calibration } from "./calibration.js";
import { Resampler } from "./resample.js";
import { answer, mean, search, timeline } from "./vectors.js";

const SOUND = /\.(wav|wave|mp3|flac|ogg|oga|opus|m4a|aac|mp4|webm|weba)$/i;
const TEMPLATE = "this is a sound of {}"; // the zero-shot pipeline's
const HITS = 10;
const TOP = 3; // labels shown of a sound

const find = (id) => document.getElementById(id);
const sounds = []; // {name, file, seconds, starts in s, vectors of windows, vector, row}
let labels = { names: [], vectors: [] };
let settings; // of model.json
let calibration; // where the model has one

// ---- the worker

const waiting = new Map();
let worker;
const ready = Promise.withResolvers();

async function startWorker() {
  // The worker's downloads pass through the service worker, which keeps them.
  if ("serviceWorker" in navigator) {
    try {
      await controlled(await navigator.serviceWorker.register("service_worker.js"));
    } catch {
      // The page works without it, but not offline.
    }
  }
  worker = new Worker("towers.js", { type: "module" });
  worker.onmessage = ({ data }) => {
    if (data.total) {
      find("load-progress").value = data.loaded / data.total;
      find("load-text").textContent = `Loading the model, ${(data.loaded / 1e6).toFixed(0)} of ${(data.total / 1e6).toFixed(0)} MB`;
    } else if (data.settings) {
      settings = data.settings;
      if (data.background) calibration = new Calibration(settings.calibration, data.background);
      ready.resolve();
    } else if (data.failed) {
      ready.reject(new Error(data.failed));
    } else {
      const { resolve, reject } = waiting.get(data.id);
      waiting.delete(data.id);
      if (data.error) reject(new Error(data.error));
      else resolve(data.vectors);
    }
  };
  worker.onerror = (event) => ready.reject(new Error(event.message || "the worker did not start"));
}

// Waits until the service worker sees this page's requests, or until it is known that it never will.
function controlled({ installing, waiting, active }) {
  if (navigator.serviceWorker.controller) return Promise.resolve();
  const coming = installing ?? waiting ?? (active?.state === "activating" ? active : null);
  if (!coming) return Promise.resolve(); // a page that was loaded again past it
  return new Promise((resolve) => {
    navigator.serviceWorker.addEventListener("controllerchange", resolve, { once: true });
    coming.addEventListener("statechange", () => coming.state === "redundant" && resolve());
  });
}

let requests = 0;
async function ask(request, transfer = []) {
  await ready.promise;
  const id = ++requests;
  const answer = Promise.withResolvers();
  waiting.set(id, answer);
  worker.postMessage({ id, ...request }, transfer);
  return answer.promise;
}

const embedTexts = (texts) => ask({ texts });

// Vectors of a file's windows, in order.
async function embedFile(file, progress = () => {}) {
  await ready.promise;
  const { sampling_rate: newRate, window_samples: length, short_audio: shortAudio } = settings;
  const { samples, rate } = await decode(file, newRate);
  const resampler = new Resampler(rate, newRate);
  const total = resampler.length(samples.length);
  const starts = windowStarts(total, length);
  const vectors = [];
  for (const start of starts) {
    progress(vectors.length, starts.length);
    const part = resampler.range(samples, start, Math.min(start + length, total));
    const window = part.length < length ? fill(part, length, shortAudio) : part;
    vectors.push(...(await ask({ samples: window }, [window.buffer])));
  }
  return { seconds: samples.length / rate, starts: starts.map((start) => start / newRate), vectors, vector: mean(vectors) };
}

// ---- sounds

const queue = [];
let working = false;

function problem(text) {
  const item = document.createElement("li");
  item.textContent = text;
  find("problems").append(item);
  find("problems").hidden = false;
}

const write = (id, text) => { find(id).textContent = text; };
const counted = (number, word) => `${number} ${word}${number === 1 ? "" : "s"}`;

async function add(files) {
  const chosen = files.filter((file) => SOUND.test(file.name) || /^(audio|video)\//.test(file.type));
  const left = files.length - chosen.length;
  if (!chosen.length) {
    write("status", files.length ? `None of ${counted(files.length, "file")} is a sound: expected WAV, MP3, FLAC, Ogg or M4A.` : "The folder is empty.");
    return;
  }
  if (left) problem(`${counted(left, "file")} left out: no sound by name.`);
  queue.push(...chosen);
  if (!settings) write("status", `${counted(queue.length, "sound")} to read as soon as the model is loaded.`);
  if (working) return;
  working = true;
  let done = 0;
  let failed = 0;
  while (queue.length) {
    const file = queue.shift();
    const name = file.webkitRelativePath || file.name;
    try {
      const embedded = await embedFile(file, (window, windows) => {
        const part = windows > 1 ? `, ${Math.floor((100 * window) / windows)} %` : "";
        write("status", `Reading ${name}${part}; ${done} done, ${queue.length} to come`);
      });
      const sound = { name, file, ...embedded };
      sounds.push(sound);
      done++;
      show(sound);
    } catch (error) {
      failed++;
      problem(`${name}: ${error.message}.`);
      if (!settings) queue.length = 0; // the model did not load, whose message is above
    }
  }
  working = false;
  write("status", `${counted(sounds.length, "sound")} ready${failed ? `, ${failed} not read` : ""}.`);
  if (find("query").value.trim()) await runSearch();
}

async function entriesOf(entry) {
  if (entry.isFile) return [await new Promise((resolve, reject) => entry.file(resolve, reject))];
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)); // at most 100
    if (!some.length) return (await Promise.all(found.map(entriesOf))).flat();
    found.push(...some);
  }
}

const drop = document.body;
drop.addEventListener("dragover", (event) => {
  event.preventDefault();
  find("drop").classList.add("over");
});
drop.addEventListener("dragleave", () => find("drop").classList.remove("over"));
drop.addEventListener("drop", async (event) => {
  event.preventDefault();
  find("drop").classList.remove("over");
  const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry()).filter(Boolean);
  try {
    await add((await Promise.all(entries.map(entriesOf))).flat());
  } catch (error) {
    problem(`What was dropped could not be read: ${error.message}.`);
  }
});

for (const [button, input] of [["choose-files", "files"], ["choose-folder", "folder"]]) {
  find(button).addEventListener("click", () => find(input).click());
  find(input).addEventListener("change", async () => {
    const files = [...find(input).files];
    find(input).value = ""; // so that the same file can be chosen again
    await add(files);
  });
}

// ---- microphone

let recorder;
let recordings = 0;

find("record").addEventListener("click", async () => {
  if (recorder) {
    recorder.stop();
    return;
  }
  let stream;
  try {
    // What calls want of a microphone changes the sound.
    const plain = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
    stream = await navigator.mediaDevices.getUserMedia({ audio: plain });
  } catch (error) {
    problem(`No microphone: ${error.message}. Allow it in the browser's settings of this page.`);
    return;
  }
  const parts = [];
  recorder = new MediaRecorder(stream);
  recorder.ondataavailable = ({ data }) => parts.push(data);
  recorder.onstop = async () => {
    stream.getTracks().forEach((track) => track.stop());
    recorder = undefined;
    find("record").textContent = "Record";
    find("record").setAttribute("aria-pressed", "false");
    try {
      await ready.promise;
      const { samples, rate } = await decode(new Blob(parts), settings.sampling_rate);
      // As WAV it can be played from any second.
      await add([new File([wav(samples, rate)], `recording ${++recordings}.wav`, { type: "audio/wav" })]);
    } catch (error) {
      problem(`The recording was lost: ${error.message}.`);
    }
  };
  recorder.start();
  find("record").textContent = "Stop";
  find("record").setAttribute("aria-pressed", "true");
  write("status", "Recording. Press Stop to end it.");
});

// ---- playing

let stopAt = Infinity;
let playingUrl;

const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;

async function play(sound, start, end) {
  const audio = find("audio");
  URL.revokeObjectURL(playingUrl);
  playingUrl = URL.createObjectURL(sound.file);
  audio.src = playingUrl;
  audio.currentTime = start;
  stopAt = end;
  find("player").hidden = false;
  write("playing", `${sound.name} from ${clock(start)}`);
  try {
    await audio.play();
  } catch (error) {
    if (error.name !== "AbortError") problem(`${sound.name} cannot be played: ${error.message}.`);
  }
}

find("audio").addEventListener("timeupdate", ({ target }) => {
  if (target.currentTime < stopAt) return;
  target.pause();
  stopAt = Infinity; // pressing play again goes on to the end
});

// ---- labels and timeline

const NONE = "none of these";
const percent = (share) => `${Math.round(100 * share)}\u00a0%`; // no line ends before the sign
const hue = (index) => (index * 137.5 + 190) % 360;

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function show(sound) {
  find("empty").hidden = true;
  find("table").hidden = false;
  if (!sound.row) {
    sound.row = element("tr");
    find("table").tBodies[0].append(sound.row);
  }
  const name = element("th", { scope: "row" }, element("span", { className: "name", textContent: sound.name }));
  const length = element("td", { className: "quiet", textContent: clock(Math.max(1, Math.round(sound.seconds))) });
  sound.row.replaceChildren(name, length, labelsOf(sound), element("td", {}, timelineOf(sound)));
}

function labelsOf(sound) {
  const list = element("ol");
  if (labels.names.length) {
    const { order, label, probability } = answer(sound.vector, labels.vectors, settings.logit_scale, calibration);
    const [best, ...next] = order.slice(0, TOP).map((i) => labels.names[i]);
    const first = label < 0 ? `${NONE} (${best})` : best;
    for (const textContent of [`${first} ${percent(probability)}`, ...next]) list.append(element("li", { textContent }));
  }
  return element("td", {}, list);
}

function timelineOf(sound) {
  const bar = element("div", { className: "timeline" });
  bar.setAttribute("role", "toolbar");
  bar.setAttribute("aria-label", `Timeline of ${sound.name}`);
  if (!labels.names.length) return bar;
  const runs = timeline(sound, labels.vectors, settings.logit_scale, calibration);
  runs.forEach(({ start, end, label, probability }, i) => {
    const name = label < 0 ? NONE : labels.names[label];
    const words = `${clock(start)} to ${clock(end)}: ${name}${label < 0 ? "" : `, ${percent(probability)}`}`;
    const button = element("button", { type: "button", textContent: label < 0 ? "" : name, title: words });
    button.setAttribute("aria-label", `Play ${words}`);
    if (label < 0) button.className = "none";
    else button.style.setProperty("--hue", hue(label));
    button.style.flexGrow = Math.max(1, Math.round(100 * (end - start)));
    button.tabIndex = i ? -1 : 0; // one stop for Tab, arrows within
    button.addEventListener("click", () => play(sound, start, end));
    bar.append(button);
  });
  bar.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    const buttons = [...bar.children];
    const next = buttons[(buttons.indexOf(document.activeElement) + step + buttons.length) % buttons.length];
    event.preventDefault();
    document.activeElement.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
  return bar;
}

async function applyLabels() {
  const names = [...new Set(find("labels").value.split(/[,\n]/).map((name) => name.trim()).filter(Boolean))];
  if (names.length < 2) {
    write("labels-status", `There ${names.length ? "is one label" : "are no labels"}, expected two or more, separated by commas.`);
    return;
  }
  write("labels-status", "");
  try {
    labels = { names, vectors: await embedTexts(names.map((name) => TEMPLATE.replace("{}", name))) };
    sounds.forEach(show);
    if (sounds.length) write("labels-status", `${counted(sounds.length, "sound")} labelled.`);
  } catch (error) {
    if (settings) write("labels-status", `The labels could not be read: ${error.message}.`);
  }
}

find("labels-form").addEventListener("submit", (event) => {
  event.preventDefault();
  applyLabels();
});

// ---- search

// Whether any hit is probable enough among all windows; without a calibration nobody knows.
function matches(vector, hits) {
  if (!calibration) return true;
  const needed = calibration.threshold(sounds.reduce((sum, sound) => sum + sound.vectors.length, 0));
  return hits.some((hit) => calibration.probability(hit.sound.vectors[hit.window], vector) >= needed);
}

let searches = 0;
async function runSearch() {
  const words = find("query").value.trim();
  find("hits").replaceChildren();
  if (!words || !sounds.length) {
    write("search-status", words ? "Add sounds first." : "Type words first.");
    return;
  }
  const current = ++searches;
  try {
    const [vector] = await embedTexts([words]);
    if (current !== searches) return; // another search began
    const hits = search(vector, sounds, HITS);
    find("hits").replaceChildren(...hits.map(hitItem));
    const none = matches(vector, hits) ? "" : " None of them matches, by its probability.";
    write("search-status", `${counted(hits.length, "result")} for “${words}”, the most similar first.${none}`);
  } catch (error) {
    write("search-status", `The search failed: ${error.message}.`);
  }
}

function hitItem({ sound, window, similarity }) {
  const start = sound.starts[window];
  const end = Math.min(start + settings.window_samples / settings.sampling_rate, sound.seconds);
  const button = element("button", { type: "button", textContent: "Play" });
  button.setAttribute("aria-label", `Play ${sound.name} from ${clock(start)}`);
  button.addEventListener("click", () => play(sound, start, end));
  const bar = element("span", { className: "bar", ariaHidden: "true" }, element("span"));
  bar.firstChild.style.width = `${Math.max(0, Math.min(1, similarity)) * 100}%`;
  return element(
    "li", {}, button,
    element("span", { className: "name", textContent: sound.name }),
    element("span", { className: "quiet", textContent: `at ${clock(start)}` }), bar,
    element("span", { className: "quiet", textContent: similarity.toFixed(2), title: "cosine similarity" }),
  );
}

find("search").addEventListener("submit", (event) => {
  event.preventDefault();
  runSearch();
});

// ---- start

globalThis.clapHf = { embedFile, embedTexts, sounds, calibration: () => calibration }; // for the console, and for measure.py
startWorker();
ready.promise.then(
  async () => {
    await applyLabels();
    find("loading").hidden = true;
    document.body.dataset.ready = "true";
    if (!sounds.length && !working) write("status", "The model is ready.");
  },
  (error) => {
    find("loading").hidden = true;
    find("failure").hidden = false;
    write("failure", `The model could not be loaded: ${error.message}. Check the connection and reload the page.`);
  },
);
