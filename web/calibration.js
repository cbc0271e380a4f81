// Probabilities that a sound is what a text states, as `clap_hf.calibration.Calibration` computes them: the cosine is
// standardised by those of background sounds with the text, and by those of background texts with the sound.

import { dot } from "./vectors.js";

const sigmoid = (logit) => 1 / (1 + Math.exp(-logit));

// Linear between the two nearest of sorted values, as numpy's.
function quantile(sorted, share) {
  const at = share * (sorted.length - 1);
  const below = Math.floor(at);
  const above = Math.min(below + 1, sorted.length - 1);
  return sorted[below] + (at - below) * (sorted[above] - sorted[below]);
}

// Piecewise linear through points whose places rise, level beyond both ends.
function interpolate(place, places, values) {
  if (place <= places[0]) return values[0];
  const after = places.findIndex((each) => each >= place);
  if (after < 0) return values.at(-1);
  const share = (place - places[after - 1]) / (places[after] - places[after - 1]);
  return values[after - 1] + share * (values[after] - values[after - 1]);
}

export class Calibration {
  #sounds;
  #texts;
  #places; // -log of the rates, rising
  #slope; // of thresholds beyond the rarest rate, as over the last decade before it
  #ofText = new WeakMap(); // by vector
  #ofSound = new WeakMap();

  // `facts` of model.json; `vectors`: background sounds, then background texts, one after the other.
  constructor(facts, vectors) {
    this.facts = facts;
    const size = vectors.length / (facts.sounds + facts.texts);
    const rows = Array.from({ length: facts.sounds + facts.texts }, (_, i) => vectors.subarray(i * size, (i + 1) * size));
    this.#sounds = rows.slice(0, facts.sounds);
    this.#texts = rows.slice(facts.sounds);
    const { rates, thresholds } = facts;
    const distances = rates.map((rate) => Math.abs(rate - 10 * rates.at(-1)));
    const tail = distances.indexOf(Math.min(...distances));
    this.#places = rates.map((rate) => -Math.log(rate));
    this.#slope = (thresholds.at(-1) - thresholds[tail]) / Math.log(rates[tail] / rates.at(-1));
  }

  #text(vector) {
    if (!this.#ofText.has(vector)) {
      const cosines = Float64Array.from(this.#sounds, (sound) => dot(sound, vector)).sort();
      const middle = quantile(cosines, this.facts.middle);
      this.#ofText.set(vector, { middle, spread: middle - quantile(cosines, this.facts.low) });
    }
    return this.#ofText.get(vector);
  }

  #sound(vector) {
    if (!this.#ofSound.has(vector)) {
      const cosines = this.#texts.map((text) => dot(text, vector));
      const mean = cosines.reduce((sum, cosine) => sum + cosine, 0) / cosines.length;
      const variance = cosines.reduce((sum, cosine) => sum + (cosine - mean) ** 2, 0) / cosines.length;
      this.#ofSound.set(vector, { mean, deviation: Math.sqrt(variance) });
    }
    return this.#ofSound.get(vector);
  }

  // Probability that a sound is what a text states, for their vectors, at even odds beforehand.
  probability(sound, text) {
    const cosine = dot(sound, text);
    const { middle, spread } = this.#text(text);
    const { mean, deviation } = this.#sound(sound);
    const [constant, bySound, byText] = this.facts.weights;
    return sigmoid(constant + (bySound * (cosine - middle)) / spread + (byText * (cosine - mean)) / deviation);
  }

  // The probability that any of `count` pairs reaches in a share of cases (`false_alarms`) though none fits.
  threshold(count) {
    const place = -Math.log(-Math.expm1(Math.log1p(-this.facts.false_alarms) / count));
    const beyond = Math.max(0, place - this.#places.at(-1));
    return sigmoid(interpolate(place, this.#places, this.facts.thresholds) + this.#slope * beyond);
  }
}
