// Sums over unit vectors: mean, similarity, probabilities, hits and timelines.

export function dot(left, right) {
  let sum = 0;
  for (let i = 0; i < left.length; i++) sum += left[i] * right[i];
  return sum;
}

// The normalised mean of unit vectors.
export function mean(vectors) {
  const sum = new Float32Array(vectors[0].length);
  for (const vector of vectors) vector.forEach((value, i) => { sum[i] += value; });
  const norm = Math.sqrt(dot(sum, sum)) || 1;
  return sum.map((value) => value / norm);
}

// Probabilities of labels for a sound's vector, as the zero-shot pipeline gives them.
export function probabilities(vector, labels, scale) {
  const logits = labels.map((label) => scale * dot(vector, label));
  const highest = Math.max(...logits);
  const powers = logits.map((logit) => Math.exp(logit - highest));
  const sum = powers.reduce((total, power) => total + power, 0);
  return powers.map((power) => power / sum);
}

// Windows most similar to a query, best first: [{sound, window, similarity}]; none beside another of the same sound.
export function search(query, sounds, most) {
  const all = sounds.flatMap((sound) =>
    sound.vectors.map((vector, window) => ({ sound, window, similarity: dot(query, vector) })),
  );
  all.sort((left, right) => right.similarity - left.similarity);
  const hits = [];
  for (const hit of all) {
    const near = hits.some((other) => other.sound === hit.sound && Math.abs(other.window - hit.window) < 2);
    if (!near) hits.push(hit);
    if (hits.length === most) break;
  }
  return hits;
}

// What a vector is by labels: {order, label, probability}. `order`: all labels, the best first; `label`: the best, or -1
// for none of these, which takes a calibration; `probability`: that the best is there, without calibration its share.
export function answer(vector, labels, scale, calibration) {
  const shares = probabilities(vector, labels, scale);
  const order = shares.map((_, i) => i).sort((left, right) => shares[right] - shares[left]);
  const [best] = order;
  if (!calibration) return { order, label: best, probability: shares[best] };
  const probability = calibration.probability(vector, labels[best]);
  return { order, label: probability < calibration.threshold(labels.length) ? -1 : best, probability };
}

// Runs of windows with the same answer: [{start, end, label, probability}], seconds, the last up to `seconds`.
export function timeline(sound, labels, scale, calibration) {
  const runs = [];
  sound.vectors.forEach((vector, i) => {
    const { label, probability } = answer(vector, labels, scale, calibration);
    const end = i + 1 < sound.starts.length ? sound.starts[i + 1] : sound.seconds;
    const last = runs.at(-1);
    if (last && last.label === label) {
      last.end = end;
      last.probability = Math.max(last.probability, probability);
    } else {
      runs.push({ start: sound.starts[i], end, label, probability });
    }
  });
  return runs;
}
