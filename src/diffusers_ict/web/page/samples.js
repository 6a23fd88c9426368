// The grid of samples and its controls.

import { batchOf, levelAt, normal, positionOf } from "./consistency.js";
import { latest, paint } from "./picture.js";
import { short, timeEach } from "./text.js";

const $ = (id) => document.getElementById(id);

/** Columns and rows: about ten columns, so that each has one class where there are few, and more of small images. */
export function layoutOf({ resolution, num_classes: classes }) {
  const columns = classes && classes <= 12 ? classes * Math.max(1, Math.round(10 / classes)) : 10;
  const count = resolution <= 16 ? 100 : resolution <= 32 ? 40 : 24;
  return { columns, rows: Math.max(1, Math.round(count / columns)) };
}

export class Samples extends EventTarget {
  /** Dispatches "select" when the visitor selects a sample, and "update" when the selected one is drawn anew. */
  constructor(model, onError) {
    super();
    this.model = model;
    this.selected = 0;
    this.layout = layoutOf(model.config);
    this.tiles = Array.from({ length: this.layout.columns * this.layout.rows }, (_, i) => this.#tile(i));
    this.images = [];
    $("grid").style.setProperty("--columns", this.layout.columns);
    $("grid").append(...this.tiles);
    $("grid").addEventListener("keydown", (event) => this.#move(event));

    this.second = model.config.sampling_sigmas[1][1]; // exactly, until the slider moves
    $("second").value = 1 - positionOf(this.second, model.config);
    $("second").addEventListener("input", () => (this.second = levelAt(1 - $("second").value, model.config)));

    this.draw = latest((signal) => this.#draw(signal), onError);
    $("seed").addEventListener("input", () => {
      if ($("seed").value !== "" && Number($("seed").value) !== this.seed) $("seed").value = this.seed;
    });
    for (const id of ["steps", "second", "class", "seed"]) $(id).addEventListener("input", () => this.draw());
    $("reseed").addEventListener("click", () => {
      $("seed").value = crypto.getRandomValues(new Uint32Array(1))[0] % 10000;
      this.draw();
    });
    $("save").addEventListener("click", () => this.#save());
  }

  /** The seed: a whole number within the limits of its field, whatever was typed. */
  get seed() {
    const { value, min, max } = $("seed");
    return Math.min(max, Math.max(min, Math.trunc(value)));
  }

  /** Levels of the chosen number of steps: those of the pipeline, but for the second of two. */
  get sigmas() {
    const steps = Number(document.querySelector("input[name=steps]:checked").value);
    const levels = this.model.config.sampling_sigmas[steps - 1];
    return steps === 2 ? [levels[0], this.second] : levels;
  }

  /** The noise of a sample at each level. */
  noises(index, seed = this.seed) {
    return this.sigmas.map((_, step) => normal(this.model.size, seed, index, step));
  }

  label(index) {
    const { num_classes: classes } = this.model.config;
    if (!classes) return null;
    return $("class").value === "all" ? index % classes : Number($("class").value);
  }

  /** The selected sample: { image, noises, label }, or null before it is drawn. */
  get selection() {
    const image = this.images[this.selected];
    return image ? { image, noises: this.noises(this.selected), label: this.label(this.selected) } : null;
  }

  async #draw(signal) {
    const sigmas = this.sigmas;
    $("second").disabled = sigmas.length !== 2;
    $("second-value").textContent = sigmas.length === 1 ? "–" : short(sigmas[1]);
    $("second").ariaValueText = $("second-value").textContent;
    $("levels").textContent = `sigmas=[${sigmas.map(short).join(", ")}]`;
    const count = this.tiles.length;
    let spent = 0;
    for (let start = 0; start < count; ) {
      const indices = Array.from({ length: Math.min(this.model.batchSize, count - start) }, (_, i) => start + i);
      const each = indices.map((index) => this.noises(index));
      const noises = sigmas.map((_, step) => batchOf(each.map((noise) => noise[step])));
      const labels = this.model.config.num_classes ? indices.map((index) => this.label(index)) : null;
      const { images, milliseconds } = await this.model.draw({ sigmas, noises, labels, signal });
      if (start === 0) performance.mark("samples"); // for benchmarks
      indices.forEach((index, i) => this.#show(index, images.slice(i * this.model.size, (i + 1) * this.model.size)));
      spent += milliseconds;
      start += indices.length;
    }
    $("time").textContent = `${timeEach(spent, count)} with ${this.model.runtime}`;
  }

  #show(index, image) {
    this.images[index] = image;
    paint(this.tiles[index], image, this.model.config.resolution);
    const label = this.label(index);
    const name = label === null ? "" : `, ${this.model.className(label)}`;
    this.tiles[index].ariaLabel = `Sample ${index + 1}${name}`;
    if (index === this.selected) this.dispatchEvent(new Event("update"));
  }

  #tile(index) {
    const tile = document.createElement("canvas");
    tile.setAttribute("role", "option");
    tile.ariaSelected = index === this.selected;
    tile.tabIndex = index === this.selected ? 0 : -1;
    tile.addEventListener("click", () => this.select(index));
    return tile;
  }

  select(index) {
    const [old, tile] = [this.tiles[this.selected], this.tiles[index]];
    [old.ariaSelected, old.tabIndex] = ["false", -1];
    [tile.ariaSelected, tile.tabIndex] = ["true", 0];
    tile.focus();
    this.selected = index;
    this.dispatchEvent(new Event("select"));
  }

  /** Let the visitor keep the selected sample, in its own size. */
  #save() {
    const name = `${this.model.config.title}-${this.seed}-${this.selected + 1}.png`;
    Object.assign(document.createElement("a"), { href: this.tiles[this.selected].toDataURL(), download: name }).click();
  }

  #move(event) {
    const last = this.tiles.length - 1;
    const to = {
      ArrowLeft: this.selected - 1,
      ArrowRight: this.selected + 1,
      ArrowUp: this.selected - this.layout.columns,
      ArrowDown: this.selected + this.layout.columns,
      Home: 0,
      End: last,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    if (to >= 0 && to <= last) this.select(to);
  }
}
