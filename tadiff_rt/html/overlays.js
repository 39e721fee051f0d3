// The overlays that can be chosen, their colours, and the bar that explains them.
"use strict";

const PERCENT = 100;
// Values below `from`, a share of the range, are not coloured.
const OVERLAYS = {
  probability: { title: "tumour probability", colormap: "share", from: 0.05 },
  std: { title: "standard deviation, share of full brightness", colormap: "spread", from: 0.1 },
  difference: {
    title: "difference of tumour probability",
    colormap: "more",
    negative: "less",
    from: 0.05,
  },
  difference_std: {
    title: "standard deviation of the difference",
    colormap: "spread",
    from: 0.1,
  },
};
// NiiVue's form: colours and opacities at the places I of 0 to 255; 0 is what is not coloured.
const COLORMAPS = {
  share: {
    I: [0, 1, 90, 180, 255],
    R: [87, 87, 188, 249, 252],
    G: [16, 16, 55, 142, 255],
    B: [110, 110, 84, 9, 164],
    A: [0, 150, 210, 240, 255],
  },
  spread: {
    I: [0, 1, 85, 170, 255],
    R: [59, 59, 33, 94, 253],
    G: [82, 82, 145, 201, 231],
    B: [139, 139, 140, 98, 37],
    A: [0, 60, 140, 210, 255],
  },
  more: {
    I: [0, 1, 128, 255],
    R: [253, 253, 230, 127],
    G: [200, 200, 100, 39],
    B: [160, 160, 30, 4],
    A: [0, 130, 230, 255],
  },
  less: {
    I: [0, 1, 128, 255],
    R: [160, 160, 50, 8],
    G: [205, 205, 120, 48],
    B: [240, 240, 190, 107],
    A: [0, 130, 230, 255],
  },
};

function percent(share) {
  const value = share * PERCENT;
  return `${value.toFixed(Math.abs(value) < 10 ? 1 : 0)} %`.replace("-", "−");
}

// A colour bar as NiiVue colours values from `cal_min` to `cal_max`; with a negative colour map, of
// both signs, nothing between.
function drawBar(bar, nv, { cal_min: low, cal_max: high, colormap, colormapNegative: negative }) {
  const context = bar.getContext("2d");
  context.clearRect(0, 0, bar.width, bar.height);
  for (let x = 0; x < bar.width; x++) {
    const share = x / (bar.width - 1);
    const value = negative ? (2 * share - 1) * high : low + share * (high - low);
    if (Math.abs(value) < low) continue;
    const colours = nv.colormap(value < 0 ? negative : colormap);
    const at = 4 * Math.round((255 * (Math.abs(value) - low)) / (high - low));
    const [red, green, blue, alpha] = colours.slice(at, at + 4);
    context.fillStyle = `rgb(${red} ${green} ${blue} / ${alpha / 255})`;
    context.fillRect(x, 0, 1, bar.height);
  }
}
