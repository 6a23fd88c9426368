// Avatars in colour, drawn on the spot: five styles of DiceBear as folders of PNG files, one sub-folder for each class.
//
//   npm install --no-save --prefix runs/avatars @dicebear/core@9.4.3 @dicebear/collection@9.4.3 @resvg/resvg-js@2.6.2
//   NODE_PATH=runs/avatars/node_modules node benchmarks/runs/avatars.mjs runs/avatars [images] [held out] [pixels]
//
// runs/avatars/train holds IMAGES of each class (4,000), runs/avatars/test so many others HELD OUT (500), PIXELS wide
// (32). No two images are the same drawing. The designs are by Ashley Seo (Big Smile), Natalia Spivak (Dylan) and
// Webpixels (Miniavs), under CC BY 4.0, and by DiceBear (Pixel Art, Thumbs), under CC0 1.0.
import { createRequire } from 'node:module';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { pathToFileURL } from 'node:url';

const [folder, images = 4000, heldOut = 500, pixels = 32] = process.argv.slice(2);
if (!folder) throw new Error('give the folder that is to hold train and test');
const require = createRequire(join(resolve(process.env.NODE_PATH ?? 'node_modules'), 'x'));
const load = (name) => import(pathToFileURL(require.resolve(name)));
const [{ createAvatar }, styles, { Resvg }] = await Promise.all(
  ['@dicebear/core', '@dicebear/collection', '@resvg/resvg-js'].map(load),
);
const CLASSES = ['bigSmile', 'dylan', 'miniavs', 'pixelArt', 'thumbs'];
const BACKGROUNDS = ['b6e3f4', 'c0aede', 'd1d4f9', 'ffd5dc', 'ffdfbf'];

for (const name of CLASSES) {
  const drawn = new Set();
  const title = name.replace(/[A-Z]/, (letter) => ` ${letter.toLowerCase()}`);
  for (let seed = 0; drawn.size < Number(images) + Number(heldOut); seed++) {
    const svg = createAvatar(styles[name], { seed: `${name} ${seed}`, backgroundColor: BACKGROUNDS }).toString();
    if (drawn.has(svg)) continue;
    const place = join(folder, drawn.size < Number(images) ? 'train' : 'test', title);
    if (drawn.size === 0 || drawn.size === Number(images)) mkdirSync(place, { recursive: true });
    const png = new Resvg(svg, { fitTo: { mode: 'width', value: Number(pixels) } }).render().asPng();
    writeFileSync(join(place, `${String(drawn.size).padStart(5, '0')}.png`), png);
    drawn.add(svg);
    if (seed > 4 * (drawn.size + 1000)) throw new Error(`${name} has only ${drawn.size} different drawings`);
  }
  console.log(`${title}: ${drawn.size}`);
}
