// Windowed-sinc resampling, equal to `resample` of the feature extractor: Hann window, 6 zero crossings, roll-off 0.99.
// The browser's own resampler leaves images of low rates, which a log-mel shows.

function gcd(a, b) {
  return b ? gcd(b, a % b) : a;
}

export class Resampler {
  // rates in Hz, whole numbers
  constructor(rate, newRate) {
    const divisor = gcd(rate, newRate);
    this.rate = rate / divisor;
    this.newRate = newRate / divisor;
    const cutoff = Math.min(1, newRate / rate) * 0.99;
    this.width = Math.ceil(6 / cutoff); // input samples on each side that an output sample depends on
    this.taps = 2 * this.width + 2;
    this.kernels = new Float64Array(this.newRate * this.taps);
    for (let phase = 0; phase < this.newRate; phase++) {
      for (let tap = 0; tap < this.taps; tap++) {
        const time = (tap - this.width - phase / this.newRate) * cutoff;
        if (Math.abs(time) >= 6) continue;
        const sinc = time ? Math.sin(Math.PI * time) / (Math.PI * time) : 1;
        this.kernels[phase * this.taps + tap] = sinc * Math.cos((time * Math.PI) / 12) ** 2 * cutoff;
      }
    }
  }

  // Samples that `samples` of the old rate become.
  length(samples) {
    return Math.ceil((this.newRate * samples) / this.rate);
  }

  // Output samples [start, end) of the whole input: Float32Array
  range(samples, start, end) {
    if (this.rate === this.newRate) return samples.slice(start, end);
    const output = new Float32Array(end - start);
    for (let i = start; i < end; i++) {
      const position = i * this.rate;
      const kernel = (position % this.newRate) * this.taps;
      const first = Math.floor(position / this.newRate) - this.width;
      const last = Math.min(this.taps, samples.length - first);
      let sum = 0;
      for (let tap = Math.max(0, -first); tap < last; tap++) sum += samples[first + tap] * this.kernels[kernel + tap];
      output[i - start] = sum;
    }
    return output;
  }
}
