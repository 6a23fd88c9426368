// Interpolation: between the noises of two samples, drawn with the steps of the samples.

import { normal, slerp } from "./consistency.js";
import { latest, paint, whenSeen } from "./picture.js";

const $ = (id) => document.getElementById(id);
const SEED = 1 << 21; // apart from those of samples and edits

export class Between {
  constructor(model, onError) {
    Object.assign(this, { model, round: 0 });
    this.drawEnds = whenSeen($("between"), latest((signal) => this.#drawEnds(signal), onError));
    this.draw = whenSeen($("between"), latest((signal) => this.#draw(signal), onError));
    $("position").addEventListener("input", this.draw);
    $("other").addEventListener("click", () => {
      this.round += 1;
      this.drawEnds();
      this.draw();
    });
    $("between-row").addEventListener("pointerdown", (event) => this.#drag(event));
    $("between-row").addEventListener("pointermove", (event) => event.buttons && this.#drag(event));
  }

  /** Start from a sample: its noise at each level, the levels, and its class. */
  show({ noises, label }, sigmas) {
    Object.assign(this, { noises, label, sigmas });
    this.drawEnds();
    this.draw();
  }

  #drag(event) {
    if (event.target.closest("button")) return;
    event.preventDefault();
    const row = $("between-row");
    if (event.type === "pointerdown") row.setPointerCapture(event.pointerId);
    const [from, to] = ["from", "to"].map((id) => $(id).getBoundingClientRect());
    const [start, end] = [from.left + from.width / 2, to.left + to.width / 2];
    $("position").value = (event.clientX - start) / (end - start);
    this.draw();
  }

  /** The image at a position between 0 and 1 on a canvas. The noise of later levels is interpolated, too. */
  async #at(position, canvas, signal) {
    if (!this.noises) return; // before the first samples
    const noises = this.noises.map((noise, step) =>
      slerp(noise, normal(this.model.size, SEED + this.round, step), position),
    );
    const labels = this.label === null ? null : [this.label];
    const { images } = await this.model.draw({ sigmas: this.sigmas, noises, labels, signal });
    paint(canvas, images, this.model.config.resolution);
  }

  async #drawEnds(signal) {
    await this.#at(0, $("from"), signal);
    await this.#at(1, $("to"), signal);
  }

  #draw(signal) {
    const position = Number($("position").value);
    $("position-value").textContent = position.toFixed(2);
    return this.#at(position, $("between"), signal);
  }
}
