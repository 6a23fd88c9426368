// The grid of samples and its controls.

import { batchOf, levelAt, normal, positionOf, samplingLevels } from "./consistency.js";
import { latest, paint } from "./picture.js";

const $ = (id) => document.getElementById(id);
const short = (sigma) => Number(sigma.toPrecision(3)).toString();

/** Columns and rows: small images make many samples, and up to twelve classes are columns. */
export function layoutOf({ resolution, num_classes: classes }) {
  const columns = classes >= 4 && classes <= 12 ? classes : resolution <= 32 ? 10 : 6;
  const count = resolution <= 16 ? 100 : resolution <= 32 ? 60 : 24;
  return { columns, rows: Math.max(1, Math.round(count / columns)) };
}

export class Samples extends EventTarget {
  /** Dispatches "select" when the selected sample, or its image, changes. */
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

    const { sigma_max: most, sigma_min: least, intermediate_sigmas: given } = model.config;
    const second = given[0] ?? Math.sqrt(most * least);
    $("second").value = 1 - positionOf(second, model.config);
    this.second = second; // exactly, until the slider moves
    $("second").addEventListener("input", () => (this.second = levelAt(1 - $("second").value, model.config)));

    this.draw = latest((signal) => this.#draw(signal), onError);
    for (const id of ["steps", "second", "class", "seed"]) $(id).addEventListener("input", () => this.draw());
    $("reseed").addEventListener("click", () => {
      $("seed").value = crypto.getRandomValues(new Uint32Array(1))[0] % 10000;
      this.draw();
    });
  }

  get sigmas() {
    const steps = Number(document.querySelector("input[name=steps]:checked").value);
    return samplingLevels(steps, this.second, this.model.config);
  }

  /** The noise of a sample at each level. */
  noises(index, seed = Number($("seed").value)) {
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
    $("second").disabled = sigmas.length === 1;
    $("second-value").textContent = sigmas.length === 1 ? "–" : short(this.second);
    $("levels").textContent = `sigmas=[${sigmas.map(short).join(", ")}]`;
    const count = this.tiles.length;
    let spent = 0;
    for (let start = 0; start < count; ) {
      const indices = Array.from({ length: Math.min(this.model.batchSize, count - start) }, (_, i) => start + i);
      const each = indices.map((index) => this.noises(index));
      const noises = sigmas.map((_, step) => batchOf(each.map((noise) => noise[step])));
      const labels = this.model.config.num_classes ? indices.map((index) => this.label(index)) : null;
      const { images, milliseconds } = await this.model.draw({ sigmas, noises, labels, signal });
      indices.forEach((index, i) => this.#show(index, images.slice(i * this.model.size, (i + 1) * this.model.size)));
      spent += milliseconds;
      start += indices.length;
    }
    const perImage = spent / count;
    $("time").textContent = `${perImage < 10 ? perImage.toFixed(1) : Math.round(perImage)} ms an image`;
    performance.mark("samples");
    this.dispatchEvent(new Event("drawn"));
  }

  #show(index, image) {
    this.images[index] = image;
    paint(this.tiles[index], image, this.model.config.resolution);
    const label = this.label(index);
    const name = label === null ? "" : `, ${this.model.className(label)}`;
    this.tiles[index].ariaLabel = `Sample ${index + 1}${name}`;
    if (index === this.selected) this.dispatchEvent(new Event("select"));
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

  #move(event) {
    const { columns } = this.layout;
    const last = this.tiles.length - 1;
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, Home: -last, End: last };
    if (!(event.key in steps)) return;
    event.preventDefault();
    const to = this.selected + steps[event.key];
    if (event.key === "Home" || event.key === "End") this.select(event.key === "Home" ? 0 : last);
    else if (to >= 0 && to <= last) this.select(to);
  }
}
