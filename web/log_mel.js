// Log-mel spectrogram, equal to MSClapFeatureExtractor.log_mel: periodic Hann window, centred frames with reflected
// edges, power, mel filters, dB floored at -100.

export class LogMel {
  // settings: n_fft (a power of two) and hop_length in samples, mel_filters: [{first bin, weights}, ...] by band
  constructor({ n_fft: size, hop_length: hop, mel_filters: filters }) {
    this.size = size;
    this.hop = hop;
    this.filters = filters;
    this.window = Float64Array.from({ length: size }, (_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / size));
    this.cos = Float64Array.from({ length: size / 2 }, (_, i) => Math.cos((2 * Math.PI * i) / size));
    this.sin = Float64Array.from({ length: size / 2 }, (_, i) => -Math.sin((2 * Math.PI * i) / size));
    const bits = Math.log2(size);
    this.reversed = Uint32Array.from({ length: size }, (_, i) => {
      let mirrored = 0;
      for (let bit = 0; bit < bits; bit++) mirrored |= ((i >> bit) & 1) << (bits - 1 - bit);
      return mirrored;
    });
    this.real = new Float64Array(size);
    this.imaginary = new Float64Array(size);
    this.power = new Float64Array(size / 2 + 1);
  }

  frames(samples) {
    return 1 + Math.floor(samples / this.hop);
  }

  // Float32Array [samples] at the model's rate, longer than n_fft / 2 -> Float32Array [frames * bands], dB
  compute(samples) {
    const frames = this.frames(samples.length);
    const bands = this.filters.length;
    const logMel = new Float32Array(frames * bands);
    for (let frame = 0; frame < frames; frame++) {
      this.#powerSpectrum(samples, frame * this.hop - this.size / 2);
      this.filters.forEach(({ first, weights }, band) => {
        let energy = 0;
        for (let i = 0; i < weights.length; i++) energy += weights[i] * this.power[first + i];
        logMel[frame * bands + band] = 10 * Math.log10(Math.max(energy, 1e-10));
      });
    }
    return logMel;
  }

  // Power of every bin of the frame that begins at a sample, which may lie outside of the samples.
  #powerSpectrum(samples, start) {
    const { size, real, imaginary, cos, sin, reversed, window, power } = this;
    const last = samples.length - 1;
    for (let i = 0; i < size; i++) {
      let at = Math.abs(start + i);
      if (at > last) at = 2 * last - at;
      real[reversed[i]] = samples[at] * window[i];
    }
    imaginary.fill(0);
    for (let half = 1; half < size; half *= 2) {
      const step = size / (2 * half);
      for (let block = 0; block < size; block += 2 * half) {
        for (let i = 0; i < half; i++) {
          const even = block + i;
          const odd = even + half;
          const turn = i * step;
          const re = real[odd] * cos[turn] - imaginary[odd] * sin[turn];
          const im = real[odd] * sin[turn] + imaginary[odd] * cos[turn];
          real[odd] = real[even] - re;
          imaginary[odd] = imaginary[even] - im;
          real[even] += re;
          imaginary[even] += im;
        }
      }
    }
    for (let bin = 0; bin <= size / 2; bin++) power[bin] = real[bin] ** 2 + imaginary[bin] ** 2;
  }
}
