// The mathematics of the page: noise, noise levels, sampling and editing. No DOM, no runtime.
// Images are Float32Array [C, H, W] in [-1, 1]; batches are [B, C, H, W].
// Sources: CM (arXiv:2303.01469), EDM (arXiv:2206.00364).

const TOLERANCE = 5e-7; // by which pixels may leave [-1, 1]
const MAX_ROUNDS = 1000; // patches of black and white pictures need up to 200, colours up to 500

/** The level at a position of the Karras grid, EDM Eq. 5: 0 is sigma_max, 1 is sigma_min. */
export function levelAt(position, { sigma_min, sigma_max, rho }) {
  const [low, high] = [sigma_min ** (1 / rho), sigma_max ** (1 / rho)];
  return Math.min(sigma_max, Math.max(sigma_min, (high + position * (low - high)) ** rho));
}

/** The position of a level: the inverse of levelAt. */
export function positionOf(sigma, { sigma_min, sigma_max, rho }) {
  const [low, high] = [sigma_min ** (1 / rho), sigma_max ** (1 / rho)];
  return (high - sigma ** (1 / rho)) / (high - low);
}

/** Uniform numbers in (0, 1) from a seed: mulberry32. */
function uniform(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return (((t ^ (t >>> 14)) >>> 0) + 0.5) / 2 ** 32;
  };
}

/** Standard normal noise of a key (seed, image, step): the same key gives the same noise, whatever else is drawn. */
export function normal(count, ...key) {
  const seed = key.reduce((mixed, part) => Math.imul((mixed ^ (mixed >>> 13) ^ part) + 0x9e3779b9, 0x85ebca6b), 1);
  const next = uniform(seed);
  const noise = new Float32Array(count);
  for (let i = 0; i < count; i += 2) {
    const radius = Math.sqrt(-2 * Math.log(next()));
    const angle = 2 * Math.PI * next();
    noise[i] = radius * Math.cos(angle);
    if (i + 1 < count) noise[i + 1] = radius * Math.sin(angle);
  }
  return noise;
}

/** Spherical interpolation of two noises; t = 0 gives a and t = 1 gives b. */
export function slerp(a, b, t) {
  const dot = (u, v) => u.reduce((sum, value, i) => sum + value * v[i], 0);
  const cosine = dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b));
  const angle = Math.acos(Math.min(1, Math.max(-1, cosine)));
  if (angle < 1e-6) return a.slice();
  const [wa, wb] = [Math.sin((1 - t) * angle) / Math.sin(angle), Math.sin(t * angle) / Math.sin(angle)];
  return a.map((value, i) => wa * value + wb * b[i]);
}

/** Several images of one size as one batch. */
export function batchOf(images) {
  const batch = new Float32Array(images.length * images[0].length);
  images.forEach((image, i) => batch.set(image, i * image.length));
  return batch;
}

// An edit is a linear measurement: `project` is the orthogonal projector P on what is known of an image.

/** Known: every pixel that is not erased. `erased` is [H, W], 1 where the model is to paint. */
export const inpaint = (erased) => (image) =>
  image.map((value, i) => (erased[i % erased.length] ? 0 : value));

/** Known: the mean of every patch of factor x factor pixels. */
export const superResolve = (factor, side) => (image) => {
  const means = new Float32Array(image.length);
  const corner = (i) => {
    const [x, y] = [i % side, Math.floor(i / side)]; // y counts on through the channels, whose heights are multiples
    return (y - (y % factor)) * side + x - (x % factor);
  };
  image.forEach((value, i) => (means[corner(i)] += value / factor ** 2));
  return means.map((_, i) => means[corner(i)]);
};

const LUMINANCE = [0.2989, 0.587, 0.114];
const LENGTH = Math.hypot(...LUMINANCE);

/** Known: the luminance, the direction (0.2989, 0.5870, 0.1140) of the three channels. */
export const colorize = (image) => {
  const pixels = image.length / 3;
  const unit = LUMINANCE.map((weight) => weight / LENGTH);
  const known = new Float32Array(image.length);
  for (let i = 0; i < pixels; i++) {
    const along = unit.reduce((sum, weight, c) => sum + weight * image[c * pixels + i], 0);
    unit.forEach((weight, c) => (known[c * pixels + i] = weight * along));
  }
  return known;
};

const clamp = (image) => image.map((value) => Math.min(1, Math.max(-1, value)));

/** x - P x + P y. */
function complete(image, { project, known }) {
  const projected = project(image);
  return image.map((value, i) => value - projected[i] + known[i]);
}

/** The same with pixels in [-1, 1]: both are done in turn until they agree. */
function completeInRange(image, edit) {
  for (let round = 0; round < MAX_ROUNDS; round++) {
    image = complete(image, edit);
    if (image.every((value) => Math.abs(value) <= 1 + TOLERANCE)) break;
    image = clamp(image);
  }
  return clamp(image);
}

/** An operation on every image of a batch. */
function each(batch, size, operation) {
  const count = batch.length / size;
  return batchOf(Array.from({ length: count }, (_, i) => operation(batch.subarray(i * size, (i + 1) * size))));
}

/**
 * Multistep consistency sampling, CM Algorithm 1; with an edit, Algorithm 4.
 *
 * evaluate(x, sigma) resolves to f(x, sigma). noises holds one batch of standard normal noise for each level. An edit
 * is { project, known } with known = P y. onStep(images, step) sees every estimate. Resolves to images, clamped.
 */
export async function sample(evaluate, { sigmas, noises, sigmaMin, edit = null, onStep = () => {} }) {
  let x = noises[0].map((z) => z * sigmas[0]);
  if (edit) x.forEach((value, i) => (x[i] = value + edit.known[i % edit.known.length]));
  for (const [step, sigma] of sigmas.entries()) {
    const last = step + 1 === sigmas.length;
    let estimate = clamp(await evaluate(x, sigma));
    if (edit) estimate = each(estimate, edit.known.length, (image) => (last ? completeInRange : complete)(image, edit));
    onStep(estimate, step);
    if (last) return estimate;
    const added = Math.sqrt(Math.max(0, sigmas[step + 1] ** 2 - sigmaMin ** 2));
    x = estimate.map((value, i) => value + added * noises[step + 1][i]);
  }
}
