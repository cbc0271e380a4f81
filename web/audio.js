// Sounds as the model takes them: decoded and resampled by the browser, mono, cut into windows.

// The file's mean over channels: Float32Array [samples] at `rate`, Hz.
export async function decode(file, rate) {
  const bytes = await file.arrayBuffer();
  if (!bytes.byteLength) throw new Error("the file is empty");
  let buffer;
  try {
    buffer = await new OfflineAudioContext(1, 1, rate).decodeAudioData(bytes);
  } catch {
    throw new Error("this browser cannot decode it; try WAV, MP3, FLAC or Ogg");
  }
  const mono = buffer.getChannelData(0).slice();
  for (let channel = 1; channel < buffer.numberOfChannels; channel++) {
    const samples = buffer.getChannelData(channel);
    for (let i = 0; i < mono.length; i++) mono[i] += samples[i];
  }
  if (buffer.numberOfChannels > 1) {
    for (let i = 0; i < mono.length; i++) mono[i] /= buffer.numberOfChannels;
  }
  if (!mono.length) throw new Error("it holds no samples");
  return mono;
}

// First samples of the windows that cover a sound, evenly spaced, as MSClapFeatureExtractor.window_starts.
export function windowStarts(total, length) {
  const count = Math.ceil(total / length);
  if (count <= 1) return [0];
  return Array.from({ length: count }, (_, i) => Math.round((i * (total - length)) / (count - 1)));
}

// The window [length] that starts at a sample; a shorter sound is repeated, or padded with zeros.
export function cut(samples, start, length, shortAudio) {
  if (samples.length >= length) return samples.slice(start, start + length);
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
