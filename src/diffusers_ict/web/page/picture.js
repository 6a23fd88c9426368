// Between images of the model and canvases, files and the visitor's pointer.

/** How to draw on a canvas. It is small and painted pixel by pixel, so it needs no graphics card. */
export const contextOf = (canvas) => canvas.getContext("2d", { willReadFrequently: true });

/** Paint an image [C, H, W] in [-1, 1] on a canvas, which takes its size. A fourth channel is alpha. */
export function paint(canvas, image, side) {
  const pixels = side ** 2;
  const channels = image.length / pixels;
  const data = new ImageData(side, side);
  for (let i = 0; i < pixels; i++) {
    for (let c = 0; c < 3; c++) {
      data.data[4 * i + c] = (image[(channels === 1 ? 0 : c) * pixels + i] + 1) * 127.5; // rounded and clamped
    }
    data.data[4 * i + 3] = channels === 4 ? (image[3 * pixels + i] + 1) * 127.5 : 255;
  }
  if (canvas.width !== side || canvas.height !== side) [canvas.width, canvas.height] = [side, side];
  contextOf(canvas).putImageData(data, 0, 0);
}

/** A visitor's file as an image of the model: the middle square, scaled, on white where the model has no alpha. */
export async function imageOfFile(file, side, channels) {
  const bitmap = await createImageBitmap(file);
  const edge = Math.min(bitmap.width, bitmap.height);
  const context = new OffscreenCanvas(side, side).getContext("2d");
  context.fillStyle = channels === 4 ? "transparent" : "white";
  context.fillRect(0, 0, side, side);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, (bitmap.width - edge) / 2, (bitmap.height - edge) / 2, edge, edge, 0, 0, side, side);
  const { data } = context.getImageData(0, 0, side, side);
  const image = new Float32Array(channels * side ** 2);
  for (let i = 0; i < side ** 2; i++) {
    const [r, g, b] = data.subarray(4 * i);
    if (channels === 1) image[i] = (0.299 * r + 0.587 * g + 0.114 * b) / 127.5 - 1; // luminance as in PIL
    else for (let c = 0; c < channels; c++) image[c * side ** 2 + i] = data[4 * i + c] / 127.5 - 1;
  }
  return image;
}

/** A task of which the newest call replaces those before: it is given an AbortSignal, then the arguments. */
export function latest(task, onError) {
  let controller = null;
  return async (...args) => {
    controller?.abort();
    controller = new AbortController();
    try {
      return await task(controller.signal, ...args);
    } catch (error) {
      if (error.name !== "AbortError") onError(error);
    }
  };
}

/** A drawing that waits until its element is in view; asked for in view, it returns what the drawing returns. */
export function whenSeen(element, draw) {
  let [seen, asked] = [false, false];
  new IntersectionObserver((entries) => {
    seen = entries.at(-1).isIntersecting;
    if (seen && asked) wanted();
  }).observe(element);
  const wanted = () => {
    asked = !seen;
    return seen ? draw() : undefined;
  };
  return wanted;
}
