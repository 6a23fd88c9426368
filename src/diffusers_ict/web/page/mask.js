// A mask that the visitor paints, with a pointer or with the keyboard.

export class Mask extends EventTarget {
  /** Dispatches "change". `pixels` is [H, W], 1 where the image is erased; `brush` is the side of the brush. */
  constructor(canvas, cursor, side) {
    super();
    Object.assign(this, { canvas, cursor, side, brush: Math.max(1, Math.round(side / 4)), enabled: true });
    this.pixels = new Uint8Array(side ** 2).fill(1, side ** 2 / 2); // the lower half, to begin with
    this.at = [side >> 1, side >> 1];
    canvas.addEventListener("pointerdown", (event) => this.#down(event));
    canvas.addEventListener("pointermove", (event) => this.#stroke(event));
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => (this.last = null));
    canvas.addEventListener("keydown", (event) => this.#key(event));
    this.#moveTo(this.at);
  }

  clear() {
    this.pixels.fill(0);
    this.dispatchEvent(new Event("change"));
  }

  /** The pixel under a pointer. */
  #pixel(event) {
    const box = this.canvas.getBoundingClientRect();
    const along = (position, start, length) => Math.floor(((position - start) / length) * this.side);
    return [along(event.clientX, box.left, box.width), along(event.clientY, box.top, box.height)];
  }

  /** Set the pixels under the brush. */
  #dab([x, y], value) {
    const [left, top] = [x, y].map((centre) => centre - Math.floor(this.brush / 2));
    for (let v = Math.max(0, top); v < Math.min(this.side, top + this.brush); v++) {
      const row = v * this.side;
      const [start, end] = [Math.max(0, left), Math.min(this.side, left + this.brush)];
      if (start < end) this.pixels.fill(value, row + start, row + end);
    }
  }

  #down(event) {
    if (!this.enabled || event.button !== 0) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.last = this.#pixel(event);
    this.#stroke(event);
  }

  #stroke(event) {
    if (!this.last) return;
    const to = this.#pixel(event);
    const length = Math.max(1, ...to.map((value, axis) => Math.abs(value - this.last[axis])));
    for (let i = 0; i <= length; i++) {
      this.#dab(to.map((value, axis) => Math.round(this.last[axis] + ((value - this.last[axis]) * i) / length)), 1);
    }
    this.last = to;
    this.#moveTo(to.map((value) => Math.min(this.side - 1, Math.max(0, value))));
    this.dispatchEvent(new Event("change"));
  }

  #key(event) {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (!this.enabled || !(event.key in moves || event.key === " ")) return;
    event.preventDefault();
    if (event.key === " ") {
      this.#dab(this.at, this.pixels[this.at[1] * this.side + this.at[0]] ? 0 : 1);
      this.dispatchEvent(new Event("change"));
    } else {
      this.#moveTo(this.at.map((value, axis) => Math.min(this.side - 1, Math.max(0, value + moves[event.key][axis]))));
    }
  }

  #moveTo(at) {
    this.at = at;
    const percent = (pixels) => `${(pixels / this.side) * 100}%`;
    const [left, top] = at.map((centre) => percent(centre - Math.floor(this.brush / 2)));
    Object.assign(this.cursor.style, { left, top, width: percent(this.brush), height: percent(this.brush) });
  }
}
