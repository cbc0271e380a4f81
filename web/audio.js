// Sounds as the model takes them: decoded by the browser, mono, cut into windows.

const MP3_RATES = { 3: [44100, 48000, 32000], 2: [22050, 24000, 16000], 0: [11025, 12000, 8000] }; // by MPEG version

// The sampling rate that a file states, Hz; undefined where it is of another kind than WAV, FLAC, Ogg and MP3.
// Browsers decode at a rate that they are given, and resample to it by a filter of their own.
export function statedRate(bytes) {
  const view = new DataView(bytes);
  const ascii = (at, length) =>
    at + length <= view.byteLength ? String.fromCharCode(...new Uint8Array(bytes, at, length)) : "";
  if (["RIFF", "RF64"].includes(ascii(0, 4))) {
    for (let at = 12; at + 16 <= view.byteLength; at += 8 + view.getUint32(at + 4, true) + (view.getUint32(at + 4, true) & 1)) {
      if (ascii(at, 4) === "fmt ") return view.getUint32(at + 12, true);
    }
    return undefined;
  }
  let at = 0;
  if (ascii(0, 3) === "ID3" && view.byteLength > 10) {
    at = 10 + [6, 7, 8, 9].reduce((size, byte) => (size << 7) | (view.getUint8(byte) & 127), 0);
  }
  if (ascii(at, 4) === "fLaC" && at + 22 <= view.byteLength) return view.getUint32(at + 18) >>> 12; // 20 bits
  if (ascii(at, 4) === "OggS") {
    const packet = at + 27 + view.getUint8(at + 26);
    if (ascii(packet, 7) === "\x01vorbis") return view.getUint32(packet + 12, true);
    if (ascii(packet, 8) === "OpusHead") return 48000;
    return undefined;
  }
  for (const end = Math.min(at + 4096, view.byteLength - 4); at < end; at++) {
    const header = view.getUint32(at);
    const [version, layer, rate] = [(header >>> 19) & 3, (header >>> 17) & 3, (header >>> 10) & 3];
    if (header >>> 21 === 2047 && version !== 1 && layer === 1 && rate < 3 && (header >>> 12 & 15) !== 15) {
      return MP3_RATES[version][rate];
    }
  }
  return undefined;
}

function contextAt(rate, fallback) {
  try {
    return new OfflineAudioContext(1, 1, rate);
  } catch {
    return new OfflineAudioContext(1, 1, fallback); // a rate that this browser does not work at
  }
}

// A file's mean over channels and its rate: {samples: Float32Array, rate: Hz}. `fallback`: rate of unknown files, Hz.
export async function decode(file, fallback) {
  const bytes = await file.arrayBuffer();
  if (!bytes.byteLength) throw new Error("the file is empty");
  let buffer;
  try {
    buffer = await contextAt(statedRate(bytes) ?? fallback, fallback).decodeAudioData(bytes);
  } catch {
    throw new Error("this browser cannot decode it; try WAV, MP3, FLAC or Ogg");
  }
  const samples = buffer.getChannelData(0).slice();
  for (let channel = 1; channel < buffer.numberOfChannels; channel++) {
    const other = buffer.getChannelData(channel);
    for (let i = 0; i < samples.length; i++) samples[i] += other[i];
  }
  if (buffer.numberOfChannels > 1) {
    for (let i = 0; i < samples.length; i++) samples[i] /= buffer.numberOfChannels;
  }
  if (!samples.length) throw new Error("it holds no samples");
  return { samples, rate: buffer.sampleRate };
}

// First samples of the windows that cover a sound, evenly spaced, as MSClapFeatureExtractor.window_starts.
export function windowStarts(total, length) {
  const count = Math.ceil(total / length);
  if (count <= 1) return [0];
  return Array.from({ length: count }, (_, i) => Math.round((i * (total - length)) / (count - 1)));
}

// A sound shorter than a window, repeated or padded with zeros to its length.
export function fill(samples, length, shortAudio) {
  const window = new Float32Array(length);
  const end = shortAudio === "repeat" ? length : samples.length;
  for (let at = 0; at < end; at += samples.length) window.set(samples.subarray(0, length - at), at);
  return window;
}

// A WAV file of 16 bits, mono.
export function wav(samples, rate) {
  const bytes = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const write = (at, text) => [...text].forEach((letter, i) => bytes.setUint8(at + i, letter.charCodeAt(0)));
  write(0, "RIFF");
  bytes.setUint32(4, 36 + 2 * samples.length, true);
  write(8, "WAVEfmt ");
  bytes.setUint32(16, 16, true);
  bytes.setUint16(20, 1, true); // PCM
  bytes.setUint16(22, 1, true);
  bytes.setUint32(24, rate, true);
  bytes.setUint32(28, 2 * rate, true);
  bytes.setUint16(32, 2, true);
  bytes.setUint16(34, 16, true);
  write(36, "data");
  bytes.setUint32(40, 2 * samples.length, true);
  samples.forEach((sample, i) => {
    bytes.setInt16(44 + 2 * i, Math.round(32767 * Math.max(-1, Math.min(1, sample))), true);
  });
  return new Blob([bytes.buffer], { type: "audio/wav" });
}
