// The noise ray: x + sigma z beside f(x + sigma z, sigma), at one level of choice and at nine fixed ones.

import { levelAt } from "./consistency.js";
import { latest, paint, whenSeen } from "./picture.js";
import { short } from "./text.js";

const $ = (id) => document.getElementById(id);
const STRIP = Array.from({ length: 9 }, (_, i) => i / 8);

export class Ray {
  constructor(model, onError) {
    this.model = model;
    this.columns = STRIP.map((position) => {
      const column = document.createElement("div");
      column.append(document.createElement("canvas"), document.createElement("canvas"));
      column.title = `σ = ${short(this.#level(position))}`;
      $("strip").append(column);
      return [...column.children];
    });
    this.draw = whenSeen($("noisy"), latest((signal) => this.#draw(signal), onError));
    this.drawStrip = whenSeen($("strip"), latest((signal) => this.#drawStrip(signal), onError));
    $("sigma").addEventListener("input", this.draw);
  }

  /** Show the ray from an image along a noise. */
  show({ image, noises, label }) {
    [this.image, this.noise, this.label] = [image, noises[0], label];
    this.draw();
    this.drawStrip();
  }

  /** The level at a position of a slider: 0 is sigma_min, 1 is sigma_max. */
  #level(position) {
    return levelAt(1 - position, this.model.config);
  }

  /** Draw one level on two canvases. */
  async #pair(sigma, noisyCanvas, imageCanvas, signal) {
    if (!this.image) return; // before the first samples
    const noisy = this.image.map((value, i) => value + sigma * this.noise[i]);
    const scale = Math.sqrt(1 + sigma ** 2);
    paint(noisyCanvas, noisy.map((value) => value / scale), this.model.config.resolution);
    const labels = this.label === null ? null : [this.label];
    const { image } = await this.model.evaluate(noisy, sigma, labels, signal);
    paint(imageCanvas, image, this.model.config.resolution);
  }

  #draw(signal) {
    const sigma = this.#level($("sigma").value);
    $("sigma-value").textContent = $("sigma").ariaValueText = short(sigma);
    return this.#pair(sigma, $("noisy"), $("denoised"), signal);
  }

  async #drawStrip(signal) {
    for (const [i, column] of this.columns.entries()) await this.#pair(this.#level(STRIP[i]), ...column, signal);
  }
}
