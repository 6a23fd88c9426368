// Numbers as people read them.

/** Three significant digits: 0.821, 14.4, 80. */
export const short = (number) => Number(Number(number).toPrecision(3)).toString();

/** Milliseconds of each of `count` images. */
export const timeEach = (milliseconds, count) => {
  const each = milliseconds / count;
  return `${each < 10 ? each.toFixed(1) : Math.round(each)} ms an image`;
};
