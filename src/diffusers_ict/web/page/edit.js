// Edits with the pipeline's rule: what is known of an image stays, the model draws the rest.

import { batchOf, colorize, inpaint, normal, superResolve } from "./consistency.js";
import { Mask } from "./mask.js";
import { contextOf, imageOfFile, latest, paint, whenSeen } from "./picture.js";
import { timeEach } from "./text.js";

const $ = (id) => document.getElementById(id);
const checked = (name) => document.querySelector(`input[name=${name}]:checked`).value;
const COUNT = 4; // edited images
const SEED = 1 << 20; // apart from those of the samples

const NOTES = {
  inpaint: "Erase a part of the image. The rest stays as it is, and the model draws what is missing in four ways.",
  upscale: "The model sees the mean of each patch. It draws four images with exactly these means.",
  colorize: "The model sees the luminance. It draws four images with exactly this luminance.",
};
const HELP = {
  inpaint: "Erase with the pointer, or with the arrow keys and the space bar",
  upscale: "Means of patches",
  colorize: "Luminance",
};

export class Edit {
  constructor(model, onError) {
    Object.assign(this, { model, onError, round: 0 });
    const { resolution: side } = model.config;
    this.side = side;
    this.canvases = Array.from({ length: COUNT }, () => document.createElement("canvas"));
    $("edits").append(...this.canvases);
    this.mask = new Mask($("editor"), $("cursor"), side);
    this.#setUpControls();
    this.draw = whenSeen($("editor"), latest((signal) => this.#draw(signal), onError));
    this.mask.addEventListener("change", this.draw);
  }

  #setUpControls() {
    const factors = [2, 4, 8].filter((factor) => this.side % factor === 0 && factor < this.side);
    $("factor").append(...factors.map((factor) => new Option(`${factor} × ${factor}`, factor)));
    $("brush").max = Math.max(2, this.side >> 1);
    $("brush").value = this.mask.brush;
    $("brush").addEventListener("input", () => (this.mask.brush = Number($("brush").value)));
    for (const id of ["task", "factor", "edit-steps", "edit-class", "brush"]) {
      $(id).addEventListener("input", () => this.draw());
    }
    $("clear").addEventListener("click", () => this.mask.clear());
    $("redraw").addEventListener("click", () => {
      this.round += 1;
      this.draw();
    });
    $("file").addEventListener("change", () => this.#open($("file").files[0]));
  }

  /** Edit an image of the model. One that was drawn anew does not replace the visitor's own; one selected does. */
  show({ image, label }, selected = true) {
    if (this.own && !selected) return;
    this.own = false;
    this.image = image;
    if (label !== null && label !== this.label) $("edit-class").value = this.label = label; // else the visitor's choice
    this.draw();
  }

  async #open(file) {
    if (!file) return;
    try {
      this.show({ image: await imageOfFile(file, this.side, this.model.config.channels), label: null });
      this.own = true;
    } catch {
      this.onError(new Error(`Your browser cannot read ${file.name} as an image.`));
    }
    $("file").value = ""; // the same file may be chosen again
  }

  #projector(task) {
    if (task === "inpaint") return inpaint(this.mask.pixels.slice());
    return task === "upscale" ? superResolve(Number($("factor").value), this.side) : colorize;
  }

  /** The pipeline's levels of the chosen number of steps. */
  get sigmas() {
    return this.model.config.sampling_sigmas[checked("edit-steps") - 1];
  }

  /** The noise of an edited image at each level. */
  noises(index) {
    return this.sigmas.map((_, step) => normal(this.model.size, SEED + this.round, index, step));
  }

  async #draw(signal) {
    if (!this.image) return;
    const task = checked("task");
    const project = this.#projector(task);
    const known = project(this.image);
    this.#showKnown(task, known);
    const { config, size } = this.model;
    const { sigmas } = this;
    const each = this.canvases.map((_, i) => this.noises(i));
    const noises = sigmas.map((_, step) => batchOf(each.map((noise) => noise[step])));
    const labels = config.num_classes ? this.canvases.map(() => Number($("edit-class").value)) : null;
    const onStep = (images) =>
      this.canvases.forEach((canvas, i) => paint(canvas, images.subarray(i * size, (i + 1) * size), this.side));
    const { milliseconds } = await this.model.draw({
      sigmas, noises, labels, signal, onStep, edit: { project, known },
    });
    $("edit-time").textContent = timeEach(milliseconds, COUNT);
  }

  /** What the model is given: the image without what is erased, patch means, or luminance in grey. */
  #showKnown(task, known) {
    this.mask.enabled = task === "inpaint";
    $("brush-control").hidden = $("clear").hidden = $("cursor").hidden = task !== "inpaint";
    $("factor-control").hidden = task !== "upscale";
    $("brush-value").textContent = `${this.mask.brush} × ${this.mask.brush}`;
    $("edit-note").textContent = NOTES[task];
    $("editor-help").textContent = HELP[task];
    $("editor").ariaLabel = task === "inpaint" ? "Image to erase from" : "What the model sees";
    $("editor").classList.toggle("paintable", task === "inpaint");
    const pixels = this.side ** 2;
    const grey = (i) => 0.2989 * this.image[i] + 0.587 * this.image[i + pixels] + 0.114 * this.image[i + 2 * pixels];
    paint($("editor"), task === "colorize" ? known.map((_, i) => grey(i % pixels)) : known, this.side);
    if (task !== "inpaint") return;
    const context = contextOf($("editor"));
    context.fillStyle = getComputedStyle($("editor")).getPropertyValue("--erased");
    this.mask.pixels.forEach((erased, i) => {
      if (erased) context.fillRect(i % this.side, Math.floor(i / this.side), 1, 1);
    });
  }
}
